"""Choices among whole heads of attention modules, one file each."""
