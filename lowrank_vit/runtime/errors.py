"""The exception that a user's mistake raises, a check for failures of the disk, and words of messages.

Messages name an argument as Python has it, in backticks: `sites=`, `device="cpu"`. The commands show it as their option.
"""

import errno
import re
from collections.abc import Collection

ARGUMENT = re.compile(r"`(\w+)=([^`]*)`")


class InputError(ValueError):
    """Report bad input in one line that names the culprit and the remedy; the commands print it and exit with 2."""


def worker_died(error: RuntimeError) -> InputError | None:
    """Return the error for a loading process that has died without a message; None for another error."""
    if not str(error).startswith("DataLoader worker"):
        return None
    return InputError(
        "a process that loads images has died, perhaps out of memory: give fewer workers; with `workers=0` its error shows"
    )


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message; without one, the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def disk_failed(error: OSError) -> bool:
    """Tell whether the disk, not the program, is to blame: full, over quota, or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def in_shell(message: str, options: Collection[str]) -> str:
    """Write the arguments that a message names as options of a command, which are given by their names in Python.

    >>> in_shell('leave it out by `sites=`, or try `device="cpu"` and `full=True`', ["sites", "device", "full"])
    'leave it out by --sites, or try --device cpu and --full'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2].strip("\"'")
        if name not in options:
            return found[0]
        return f"--{name.replace('_', '-')}" + (f" {value}" if value not in ("", "True") else "")

    return ARGUMENT.sub(option, message)


def amount(count: int, noun: str) -> str:
    """Write a count beside its noun.

    >>> amount(1, "thread"), amount(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{count} {noun}{'s' * (count != 1)}"
