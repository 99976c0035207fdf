"""The stages combined: recipes, the analysis of a model, its budget, and the public functions."""
