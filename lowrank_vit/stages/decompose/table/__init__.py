"""Decompositions of tables that are added to the stream, one file each."""
