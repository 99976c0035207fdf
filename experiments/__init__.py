"""The paper's tables as data, and what runs them: ``python -m experiments list | run | report``."""
