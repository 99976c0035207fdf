"""Corrections once a size is chosen: measured losses, refitted outputs."""
