"""What the claims' pictures have in common: names and colors of the networks."""

COLORS = {"capsules": "tab:blue", "cnn": "tab:orange", "dynamic": "tab:green"}  # of families
NAMES = {"capsules": "capsules", "cnn": "CNN", "dynamic": "dynamic routing"}
PAIR = ("capsules", "cnn")  # that viewpoints and attacks are about


def family(name: str) -> str:
    """Of a network or of a layer, by its name."""
    return name.partition(":")[0].partition("-")[0]
