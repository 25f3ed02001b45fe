"""The errors that end a command without a traceback."""


class RunnerError(Exception):
    """What went wrong and what to do about it, in plain words: the entry points print it in place of a traceback."""


class Stopped(Exception):
    """Training was asked to stop, and has saved its state.

    Attributes:
        preempted: by SIGTERM.
    """

    def __init__(self, message: str, preempted: bool = False):
        super().__init__(message)
        self.preempted = preempted


def first_line(error: Exception) -> str:
    """What an error says, without the details that follow."""
    return (str(error) or repr(error)).splitlines()[0].strip("<>:")
