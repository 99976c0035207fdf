"""The one exception that a user's mistake raises, and a disk's."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """Bad input. The message is one line that names the culprit and the remedy; the commands print it and exit with 2."""


def disk_failed(error: OSError) -> bool:
    """Whether the disk, not the program, is to blame: full, over quota, or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
