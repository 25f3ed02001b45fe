"""A lock that dies with its process, where there are such locks: on POSIX systems, unless a file
system has none.
"""

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(file: IO[str], wait: bool = False) -> bool:
    """Take the lock of an open file until it is closed.

    Returns:
        Whether there are locks here; where there are none, nothing keeps another process away.

    Raises:
        BlockingIOError: another process has it, and it is not to be waited for.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock of this file, which is gone afterwards; print a line if another process has it.

    One that comes while the file goes may not be kept away, nor is one where there are no locks:
    what is done must stand that.
    """
    with open(path, "w", encoding="utf-8") as file:
        try:
            lock(file)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            lock(file, wait=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
