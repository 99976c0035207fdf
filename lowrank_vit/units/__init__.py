"""Kinds of units, one file each: what can be made smaller in a module. ``base`` says what a kind must have."""
