"""Figure 1: energy kept at every rank by plain and by activation-aware SVD, in the first block.

Paper     Azizi, Nazemi, Pedram: Memory-Efficient Vision Transformers, 2024, Figure 1 and section 3.1 (DeiT-B)
Command   python -m experiments run figure1        (all three: make reproduce-figures)
          python -m experiments run figure1 --data imagefolder:IMAGENET --checkpoints WEIGHTS
Takes     a second for each stand-in and seed; DeiT-Tiny (1000 + 256 images) 2 minutes on two cores that other work shared

Energy kept is that of the layer's output. What each decomposition counts itself, as in the paper (the energy of the
weight, that of the mean input's output), is drawn thin. The DeiT-Tiny, ViT and Swin rows are not in the paper.
"""

from experiments.tables.architectures import OF_FIGURES
from experiments.tables.rows import Row, Table

TABLE = Table(
    title="Figure 1: energy of the layers' outputs kept by rank, first block",
    rows=tuple(Row.measuring(model, "energy", "energy by rank", "energy") for model in OF_FIGURES),
    drawing="energy",
)
