"""Arrays and records to figures, and figures to files."""
