"""Measure what the figures show on a dense model: one file for each figure, which registers what it measures."""
