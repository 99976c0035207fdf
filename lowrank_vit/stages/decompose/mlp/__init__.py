"""Decompositions of whole MLPs, one file each."""
