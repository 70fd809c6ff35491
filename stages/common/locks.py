"""Locks of open files. The system releases a lock when its process ends, however it ends."""

import errno
import fcntl
from collections.abc import Callable

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)  # of a file system without flock


def try_lock(descriptor: int, on_no_locks: Callable[[str], None] = lambda reason: None) -> bool:
    """Lock an open file, unless another process has locked it; returns whether it is locked now.

    A file system without locks counts as success, after a call of `on_no_locks` with the system's reason. Raises
    OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in NO_LOCKS:
            raise
        on_no_locks(error.strerror or str(error))
    return True
