"""Decompositions of whole attention modules, one file each."""
