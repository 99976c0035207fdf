"""A disk without room."""

import errno
import os


def full_disk(*arguments: object) -> None:
    """In place of whatever writes."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
