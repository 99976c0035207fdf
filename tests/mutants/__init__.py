"""Planted faults: what a person could get wrong, one by one, and the tests that should notice."""
