"""The kinds of Z, one file each; a new one needs a registration and nothing else."""
