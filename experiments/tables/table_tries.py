"""Table T, beyond the paper: the settings of our own recipes, tried on training images that are held out.

Source    of this project
Command   python -m experiments run table_tries --data imagefolder:IMAGES --checkpoints WEIGHTS --seeds 0,1

Neither labels nor images that are evaluated are looked at. Each row changes one setting of ``heads`` or ``loss_aware``,
which is named as the recipe's record has it; rows without a change are the recipes as they are. Own inputs: output layers
also read what their module is given, without a price, which bounds what units that are linear in a token could bring.
"""

from __future__ import annotations

from typing import Any

from experiments.tables.architectures import DEIT_T
from experiments.tables.rows import Row, Table

SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {  # by recipe
    "loss_aware": {"decomposition.damping": (0.03, 0.1, 1.0, 3.0)},
    "heads": {
        "measured.trust": (0.0, 0.25, 0.75, 1.0),
        "measured.rounds": (2,),
        "measured.images": (32, 288),
        "refit.sensitivity": (0.0, 1.0),
        "refit": (False,),
    },
}
OWN_INPUTS = {"attention": "own_inputs_of_attention", "MLPs": "own_inputs_of_mlps"}  # measures
REDUCTIONS = {"loss_aware": (25, 40), "heads": (25, 50)}


def row(recipe: str, percent: int, setting: str = "", value: Any = None) -> Row:
    """Return the row of one changed setting; without one, of the recipe as it is."""
    name = f"{setting}={value:g}" if setting else "as it is"
    return Row.measuring(
        DEIT_T,
        f"{recipe}-{name.replace(' ', '-')}-{percent}",
        f"{recipe}: {name}",
        "divergence",
        recipe=recipe,
        reduction=percent / 100,
        changes={setting: value} if setting else {},
        embedded_seeds=(0,),
    )


def own_inputs(percent: int) -> list[Row]:
    """List ``heads`` with output layers that read their modules' inputs, too."""
    return [
        Row.measuring(
            DEIT_T,
            f"{measure.replace('_', '-')}-{percent}",
            f"heads: own inputs of {kind}, not counted",
            measure,
            recipe="heads",
            reduction=percent / 100,
            embedded_seeds=(0,),
        )
        for kind, measure in OWN_INPUTS.items()
    ]


def rows() -> list[Row]:
    """List all tries on DeiT-Tiny."""
    tries = [
        tried
        for recipe, settings in SETTINGS.items()
        for percent in REDUCTIONS[recipe]
        for tried in (
            row(recipe, percent),
            *(row(recipe, percent, setting, value) for setting, values in settings.items() for value in values),
        )
    ]
    return [*tries, *(row for percent in REDUCTIONS["heads"] for row in own_inputs(percent))]


TABLE = Table(
    name="table_tries",
    title="Table T: settings tried on held-out training images",
    about=__doc__ or "",
    rows=tuple(rows()),
    columns=("architecture", "method", "reduction", "kl_unseen", "agreement_unseen", "seconds", "status"),
    pictures=(),
)
