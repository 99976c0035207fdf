"""Families of models, one file each: the parts of their models. Only these files use the types of the models' libraries."""
