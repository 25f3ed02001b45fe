"""Times and memory: one layer, a training step, the whole loop, and the textbook beside them."""
