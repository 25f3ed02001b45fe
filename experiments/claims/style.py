"""What the claims call the networks, which two most of them compare, and their colors."""

COLORS = {"capsules": "tab:blue", "cnn": "tab:orange", "dynamic": "tab:green"}  # of families
NAMES = {"capsules": "capsules", "cnn": "CNN", "dynamic": "dynamic routing"}
PAIR = ("capsules", "cnn")  # that viewpoints and attacks are about


def family(name: str) -> str:
    """Of a network or of a layer, by its name."""
    return name.partition(":")[0].partition("-")[0]
