"""Figure B, beyond the paper: the increase of the loss that ``heads`` predicts and spends, against the measured one.

Source    of this project (README, method of ``heads``)
Command   python -m experiments run figure_loss      (with the paper's three: make reproduce-figures)
          python -m experiments run figure_loss --data imagefolder:IMAGES --checkpoints WEIGHTS
Takes     3 to 8 seconds for each stand-in and seed; DeiT-Tiny (64 unseen images): 108 comparisons and the statistics

One part of one block is reduced - queries with keys, values, or hidden units -, all else stays dense. The allocator needs
the order of the parts right, so their rank correlation (Spearman) is what counts; a factor common to all costs nothing.
"""

from experiments.tables.architectures import OF_FIGURES
from experiments.tables.rows import Row, Table

TABLE = Table(
    title="Figure B: predicted against measured increase of the loss, one part of the model reduced",
    rows=tuple(Row.measuring(model, "loss", "predicted against measured loss", "loss") for model in OF_FIGURES),
    drawing="loss",
)
