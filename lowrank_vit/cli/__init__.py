"""The command line: an entry point, and a file for each verb."""

from lowrank_vit.cli.command_line import main

__all__ = ["main"]
