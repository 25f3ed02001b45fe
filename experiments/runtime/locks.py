"""A lock that dies with its process, where there are such locks: on POSIX systems, unless a file
system has none.
"""

import errno
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(file: IO[str]) -> bool:
    """Take the lock of an open file until it is closed.

    Returns:
        Whether there are locks here; where there are none, nothing keeps another process away.

    Raises:
        BlockingIOError: another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True
