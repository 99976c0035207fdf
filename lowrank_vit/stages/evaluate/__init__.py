"""Evaluation of a model: accuracy and speed."""
