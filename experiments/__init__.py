"""Hold the paper's tables as data, and run them: ``python -m experiments list | run | report``."""
