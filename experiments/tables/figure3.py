"""Figure 3: error at the output of the attention projections: with Z, and with Z's budget spent on rank instead.

Paper     Azizi, Nazemi, Pedram: Memory-Efficient Vision Transformers, 2024, Figure 3 and section 3.3 (DeiT-B)
Command   python -m experiments run figure3        (all three: make reproduce-figures)
          python -m experiments run figure3 --data imagefolder:IMAGENET --checkpoints WEIGHTS
Takes     70 to 90 seconds for each stand-in and seed on one core, DeiT-Tiny (1000 + 256 images) 4 minutes on two cores,
          other work sharing them; most of a stand-in's time is the minibatch solver, which --solver closed_form leaves out

Every projection keeps 50 % of its weight's parameters, Z's 5 % among them; the paper does not say how much its figure
keeps. Z by gradients takes 2000 steps on minibatches by Adam: plain gradient descent barely moves at the paper's rate (Table
1). For DeiT-Tiny Adam descends on the same loss over all calibration images at once. The DeiT-Tiny, ViT and Swin rows are not
in the paper.
"""

from experiments.tables.architectures import DEIT_T, OF_FIGURES
from experiments.tables.rows import Row, Table

PERCENT = 50  # of each projection's parameters that are removed

TABLE = Table(
    title=f"Figure 3: error at the output of the attention projections, {100 - PERCENT} % of their parameters kept",
    rows=tuple(
        Row.measuring(
            model, f"attn-proj-{PERCENT}", "error of attn.proj", "compensation", recipe="paper", reduction=PERCENT / 100,
            changes={"allocator": "uniform"} | ({"solver": "moments"} if model is DEIT_T else {}),
        )
        for model in OF_FIGURES
    ),
    drawing="compensation",
)  # fmt: skip
