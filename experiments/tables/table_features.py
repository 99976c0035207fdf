"""Table N, beyond the paper: what is left of the features of a model without a classifier.

Source    of this project
Command   python -m experiments run table_features
          python -m experiments run table_features/deit_t --data imagefolder:IMAGES --checkpoints WEIGHTS

The classifier is taken off first; nothing is trained, and no label calibrates. ``exact`` keeps the outputs of each layer,
``loss_aware`` and ``heads`` keep the features by the objective ``features``. The labelled training images are the gallery of
the nearest neighbours, and what the linear probe is fitted to; the images of the evaluation are the queries.
"""

from __future__ import annotations

from experiments.tables.architectures import DEIT_B, DEIT_T, Architecture
from experiments.tables.rows import Row, Table

RECIPES = ("exact", "loss_aware", "heads")
REDUCTIONS = {DEIT_B.id: (40, 60, 70), DEIT_T.id: (25, 40, 50)}


def rows(model: Architecture) -> list[Row]:
    """List the dense model and all compressions of it."""
    return [
        Row.measuring(model, "dense", "Dense", "neighbours"),
        *(
            Row.measuring(model, f"{name}-{share}", name, "neighbours", recipe=name, reduction=share / 100)
            for name in RECIPES
            for share in REDUCTIONS[model.id]
        ),
    ]


TABLE = Table(
    name="table_features",
    title="Table N: features without a classifier, by their neighbours",
    about=__doc__ or "",
    rows=(*rows(DEIT_B), *rows(DEIT_T)),
    columns=("architecture", "method", "reduction", "knn", "probe", "feature_error", "seconds", "status"),
    pictures=(),
)
