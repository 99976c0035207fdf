"""The kinds of Z, one file each; to add one, register it."""
