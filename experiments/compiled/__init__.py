"""What compilers make of a step: launches, memory, collectives, with or without the device."""
