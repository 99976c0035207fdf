"""The field's papers, one file for each: what it computes, its hyperparameters, recipes and look, and what it prints.

Registries find what these files register, by a scan of the folder; nothing below ``methods`` imports them.
"""
