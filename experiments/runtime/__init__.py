"""What every command stands on: flags, errors, records, tables, locks, signals, processes."""
