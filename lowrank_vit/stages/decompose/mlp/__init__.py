"""Decompositions of whole MLPs: one file each, and one for the scores of single hidden units."""
