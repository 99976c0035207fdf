"""Choices among parts and outputs of a module together, one file for each."""
