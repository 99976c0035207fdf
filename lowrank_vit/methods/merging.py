"""Ours: tokens merged by a plan (``stages/tokens/merging.py`` has the rule, ``compression/token_plan.py`` makes the plan)."""

from lowrank_vit.records.looks import look
from lowrank_vit.stages.tokens import TOKENS
from lowrank_vit.stages.tokens.merging import PlannedMerging

TOKENS.register("merge")(PlannedMerging)
look("merge", "D", (1, 3), "pink", "Planned merging", "saves no parameters")
