"""The errors that end a command without a traceback."""


class RunnerError(Exception):
    """What went wrong and what to do about it, in plain words: the entry points print it in place
    of a traceback.

    The command was right, and the exit code is 1.
    """


class UsageError(RunnerError):
    """A mistake in what was asked for, found before anything is compiled or written: one line, and
    exit code 2.

    What a command asks for are its flags, and what they are about: a folder, a data set, devices.
    """


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
