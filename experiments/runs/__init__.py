"""One training run: its folder, its loop, its checkpoints, and what is read back."""
