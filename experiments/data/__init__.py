"""Data sets, from files to batches of what the network sees."""
