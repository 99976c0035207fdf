"""Figure 2: top-1 when the ranks of a single block, or of one type of layer in all blocks, are reduced.

Paper     Azizi, Nazemi, Pedram: Memory-Efficient Vision Transformers, 2024, Figure 2 and section 3.2 (DeiT-B)
Command   python -m experiments run figure2        (all three: make reproduce-figures)
          python -m experiments run figure2 --data imagefolder:IMAGENET --checkpoints WEIGHTS --limit 5000
Takes     5 seconds for each row of a stand-in and seed, on one core; DeiT-Tiny: 50,500 forward passes of an image on 250
          images, 21,400 with --limit 100 (not timed to the end; an interrupted run goes on)

Three decompositions: of the weight, plain and, as the paper does, on the mean image, and on all tokens of all images
(whitened). Everything else stays dense, and nothing is fine-tuned. A real model is evaluated on 250 images unless
--limit says otherwise. The DeiT-Tiny, ViT and Swin rows are not in the paper.
"""

from experiments.tables.architectures import OF_FIGURES
from experiments.tables.rows import Row, Table

PARTS = {"blocks": "accuracy_by_block", "layers": "accuracy_by_layer"}  # the paper's (a) and (b)
TABLE = Table(
    title="Figure 2: top-1 with the ranks of a single block or type of layer reduced, without fine-tuning",
    rows=tuple(
        Row.measuring(model, part, f"one of the {part} reduced", measure)
        for model in OF_FIGURES
        for part, measure in PARTS.items()
    ),
    drawing="accuracy",
)
