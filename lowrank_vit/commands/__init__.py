"""The verbs of ``python -m lowrank_vit``, one file each: ``add_parser`` and ``run``.

What is heavy is imported inside ``run``, so that ``--help`` answers at once.
"""
