"""Run one job, from its description to ``result.json``."""
