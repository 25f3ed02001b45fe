"""The devices of this machine, and one program over all of them."""
