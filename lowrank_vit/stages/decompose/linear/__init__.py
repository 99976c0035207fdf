"""Decompositions of single linear layers, one file each."""
