"""The verbs of ``python -m lowrank_vit``, one file each: ``add_parser`` and ``run``.

Heavy modules are imported inside ``run``, so that ``--help`` answers at once.
"""
