"""The error that users can put right."""


class RunnerError(Exception):
    """What went wrong and what to do about it, in plain words: the entry points print it in place of a traceback."""
