"""Table R, rivals: every method that needs calibration images alone, on the same weights, images and sizes.

Sources   the papers in the rows, as printed, with their own protocol, epochs and teacher; docs/rivals.md
Command   python -m experiments run table_rivals        (or: make reproduce-table_rivals)
          python -m experiments run table_rivals/deit_t --data imagefolder:IMAGES --checkpoints WEIGHTS --seeds 0,1

The first rows of a model are measured here; params and multiply-accumulates are counted on the smaller model. A form that
lacks a part of its paper has another name than the method: `comcat0` is where COMCAT begins, `ssp` S2ViTE's one-shot
baseline, `vtp-taylor` a score of VTP's gates that are never trained; what ends in `-gates` trains gates alone, and the
weights stay frozen. `aafm+gfm` trains towards the dense model's features alone, on the calibration images; `best`,
distilled, towards logits and blocks, too. None of these reads a label. Full forms have the bare names: they learn gates and
weights on labelled images for half of the epochs and are fine-tuned for the other half, the dense model being the teacher;
`best-full` is `heads` with all epochs behind it, and `best-gates-full` has its sizes learnt by COMCAT's gates before them.
A second block is at equal multiply-accumulates: rules that let fewer tokens pass save nothing else, so they stand beside
`best` and `ssp` with this budget, and behind `best`; Kong's selectors learn which tokens pass, alone or with the weights.
Speed-ups are measured where the model is a real one.
"""

from dataclasses import replace
from typing import Any

from experiments.tables.architectures import DEIT_B, DEIT_T, Architecture
from experiments.tables.rows import GATES_ALONE, Reported, Row, Table
from lowrank_vit.records.looks import LOOKS, PRINTED

METHODS = (
    "svd", "svd_llm", "svd_llm_update", "fwsvd", "asvd", "afm_energy", "aafm", "flar", "fwsvd_search", "asvd_search",
    "comcat0", "ssp", "vtp-taylor", "vtp-gates", "wdp-gates", "wd-depth", "losparse0", "spvit-he-gates", "vbp", "corp",
    "corp_layerwise", "paper", "paper_literal", "exact", "loss_aware", "heads", "best",
)  # fmt: skip
LEARNT = ("vtp", "wdpruning", "s2vite", "losparse", "spvit-he")  # full forms
SELECTORS: dict[str, dict[str, Any]] = {  # rule of tokens: fields of the row
    "spvit-kong-gates": {"protocol": GATES_ALONE},
    "spvit-kong": {"protocol": "full-ft+kd", "gradual_share": 1.0, "epochs": None},
}
PAPERS = ("flar", "corp", "aafm", "comcat", "s2vite", "vtp")  # whose printed numbers stand here
SCRATCH = 600  # epochs from random weights
HALF = 0.5  # of the epochs of full fine-tuning: with gates
REDUCTIONS = (25, 40, 50)
MACS = (25, 40)  # percent of the multiply-accumulates
HALF_OF_MACS = ("tome", "heads", "best")  # what is also compared at -50 %
BEFORE_TOKENS = {25: 0.125, 40: 0.25}  # the recipe's share of them, where tokens become fewer behind it
EPOCHS = 9  # of the calibration images, as in table_best
FEATURES_ALONE = {"logit_weight": 0.0, "block_weight": 0.0, "restore": False}  # as GFM, which measures nothing unseen


def rows(model: Architecture) -> list[Row | Reported]:
    """List the dense model, all methods at all sizes, what is distilled, and what is printed."""
    dense = Row.untrained(model, "dense", "Dense", None, protocol="dense")
    measured = [_row(model, recipe, percent) for percent in REDUCTIONS for recipe in METHODS]
    trained = [distilled_row(model, recipe, percent) for percent in REDUCTIONS for recipe in ("aafm", "vbp", "heads")]
    learnt = [learnt_row(model, recipe, percent) for percent in REDUCTIONS for recipe in LEARNT]
    learnt += [_from_scratch(model, percent) for percent in REDUCTIONS]
    learnt += [row for percent in REDUCTIONS for row in _full(model, percent)]
    macs = [row for percent in MACS for row in _equal_macs(model, percent)]
    halved = {f"{model.id}/{name}-macs-50" for name in HALF_OF_MACS}
    macs += [row for row in _equal_macs(model, 50) if row.id in halved]
    return [dense, *measured, *trained, *learnt, *macs, *_printed(model)]


def _row(model: Architecture, recipe: str, percent: int) -> Row:
    """Return the row of a method without training."""
    return Row.untrained(
        model, f"{recipe}-{percent}", _titled(recipe), recipe, reduction=percent / 100, note=LOOKS.get(recipe).note,
        protocol=GATES_ALONE if recipe.endswith("-gates") else "training-free", timed=True,
    )  # fmt: skip


def _titled(name: str) -> str:
    """Name a method by its title and its recipe, or token rule."""
    return f"{LOOKS.get(name).title} ({name})"


def _printed(model: Architecture) -> list[Reported]:
    """List what papers have printed about a model."""
    rows = []
    for each in (each for paper in PAPERS for each in PRINTED.get(paper) if each.model == model.id):
        name = "-".join([*each.method.lower().split(), each.params.split()[0].lower()])
        notes = "; ".join(filter(None, (f"epochs: {each.epochs}; teacher: {each.teacher}", each.note)))
        known = (model.label, each.method, each.params, each.top1, each.source, each.protocol)
        rows.append(Reported(f"{model.id}/printed-{name}", *known, notes))
    return rows


def distilled_row(model: Architecture, recipe: str, percent: int) -> Row:
    """Return the row of a method whose parameters are then trained on the calibration images: AAFM's on features alone."""
    gfm = recipe == "aafm"
    return replace(
        _row(model, recipe, percent),
        id=f"{model.id}/{recipe}{'+gfm' if gfm else '-distilled'}-{percent}",
        method="AAFM + GFM (aafm+gfm)" if gfm else f"{LOOKS.get(recipe).title}, distilled",
        protocol="calibration-distilled",
        note="learning rate and epochs are ours: its own were not found" if gfm else "",
        distill_epochs=EPOCHS,
        distill_changes=FEATURES_ALONE if gfm else {},
    )


def _equal_macs(model: Architecture, percent: int) -> list[Row]:
    """List the rows reduced to one share of the multiply-accumulates."""

    def row(name: str, method: str, recipe: str | None, **more: Any) -> Row:
        more |= {"reduction": percent / 100, "cost": "macs", "timed": True}
        return Row.untrained(model, f"{name}-macs-{percent}", method, recipe, **more)

    gates, budget, before = {"protocol": GATES_ALONE}, "MACs as budget", BEFORE_TOKENS.get(percent, 0.0)
    return [
        *(
            row(name, _titled(name), None, tokens=name, note=LOOKS.get(name).note, **more)
            for name, more in {"tome": {}, "pitome": {}, "evit": {}, **SELECTORS}.items()
        ),
        row("ssp", f"S2ViTE's one-shot baseline, {budget} (ssp)", "ssp", note=LOOKS.get("ssp").note),
        row("spvit-he-gates", f"He's SPViT, gates alone, {budget} (spvit-he-gates)", "spvit-he-gates", **gates),
        row("heads", f"Ours, {budget} (heads)", "heads"),
        row("best", f"Ours, {budget} (best)", "best"),
        row("best+tome", "Ours, then ToMe (best+tome)", "heads", tokens="tome", before_tokens=before),
    ]


def learnt_row(model: Architecture, recipe: str, percent: int) -> Row:
    """Return the row of a full form."""
    name = "s2vite-schedule" if recipe == "s2vite" else recipe  # from trained weights, where the paper's are random
    return Row.of(
        model, f"{name}-{percent}", _titled(recipe), recipe, reduction=percent / 100, protocol="full-ft+kd",
        note=LOOKS.get(recipe).note, gradual_share=HALF, full=True,
    )  # fmt: skip


def _full(model: Architecture, percent: int) -> list[Row]:
    """List `best` with as many epochs as full forms have, all after the compression; and with sizes that gates learn."""
    full = replace(
        _row(model, "heads", percent), id=f"{model.id}/best-full-{percent}", method="Ours (heads), full FT",
        protocol="full-ft+kd", epochs=None, full=True, timed=False,
    )  # fmt: skip
    gates = replace(
        full, id=f"{model.id}/best-gates-full-{percent}", method="Ours (heads), sizes by gates, full FT",
        changes={"search": "gates"}, note="the units of `heads`, their sizes by COMCAT's gates",
    )  # fmt: skip
    return [full, gates]


def _from_scratch(model: Architecture, percent: int) -> Row:
    """Return the row of S2ViTE as its paper has it: from random weights, on labels alone."""
    return Row.untrained(
        model, f"s2vite-{percent}", "S2ViTE, from scratch (s2vite)", "s2vite", reduction=percent / 100, protocol="full-ft",
        note="600 epochs; batch and learning rate are the run's", gradual_epochs=SCRATCH, scratch=True, embedded_seeds=(0,),
    )  # fmt: skip


TABLE = Table(
    title="Table R: rivals on one protocol",
    rows=tuple(row for model in (DEIT_B, DEIT_T) for row in rows(model)),
    columns=(
        "architecture", "method", "protocol", "reduction", "params_printed", "params", "macs", "top1_reported", "top1_dense",
        "accuracy", "relative_error_held_out", "speedup_1", "speedup_8", "seconds", "status",
    ),
    pictures=("front_vs_params", "front_vs_macs"),
)  # fmt: skip
