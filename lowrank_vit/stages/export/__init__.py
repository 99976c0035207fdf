"""Export of a compressed model for other programs, and its form for a GPU."""
