"""The one exception that a user's mistake raises."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The message is one line that names the culprit and the remedy; the commands print it and exit with 2."""
