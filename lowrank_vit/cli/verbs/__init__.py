"""The verbs of ``python -m lowrank_vit``, one file each: ``HELP``, ``EXAMPLE``, ``add_arguments`` and ``run``.

``check``, where a verb has one, refuses what needs no model. Heavy modules are imported inside ``run``, so that ``--help``
answers at once.
"""
