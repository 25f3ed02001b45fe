"""Colors, and text as it is."""

TRAIN, TEST, NEUTRAL = "tab:blue", "tab:orange", "0.75"
TRUE, PREDICTED = "tab:green", "tab:red"


def plain(text: str) -> str:
    """A text that Matplotlib does not take for a formula, whatever dollars there are in it."""
    return text.replace("$", r"\$")
