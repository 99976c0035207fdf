"""Export of a compressed model for other programs."""
