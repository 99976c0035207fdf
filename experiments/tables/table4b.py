"""Table 4b, beyond the paper: the accuracy of files of a given size, by ranks, by bits, by both in turn and by both at once.

Source    of this project
Command   python -m experiments run table4b --data imagefolder:IMAGENET --checkpoints WEIGHTS

Ranks are those of ``heads``, in float16. Bits are GPTQ's: of the blocks, the patch embedding and the classifier. Bits alone:
the same for all blocks, the most that fit, and 8 for the other two layers; or of each layer, by the knapsack of the last way.
In turn, as in the paper, the model is cut until it fits at 8 or at 4 bits; the one nearer to the dense model on held-out
training images stays. At once, one knapsack chooses sizes and bits of every layer. Nothing is trained.
"""

from experiments.tables.architectures import DEIT_T
from experiments.tables.rows import Row, Table

DENSE_BYTES = 22_883_376  # of DeiT-Tiny's file in float32
SIZES = (4, 3, 2, 1.5)  # MiB
WAYS = {
    "bytes_by_ranks": "ranks alone (heads, float16)",
    "bytes_by_bits": "bits alone, the same for all blocks (GPTQ)",
    "bytes_by_bits_each": "bits alone, of each layer (GPTQ)",
    "bytes_in_turn": "ranks, then bits (heads, GPTQ)",
    "bytes_at_once": "ranks and bits at once (heads, GPTQ)",
}
# MiB: two bits for each weight need more than 1.5; these ways cut nothing, so no recipe makes them older
SMALLEST = {"bytes_by_bits": 2, "bytes_by_bits_each": 2}


def row(measure: str, size: float) -> Row:
    """Return the row of one way to make a file of ``size`` MiB."""
    name, removed = measure.removeprefix("bytes_").replace("_", "-"), 1 - size * 2**20 / DENSE_BYTES
    title, recipe = f"{WAYS[measure]}, {size:g} MiB", None if measure in SMALLEST else "heads"
    return Row.measuring(DEIT_T, f"{name}-{size:g}", title, measure, recipe=recipe, reduction=removed)


TABLE = Table(
    title="Table 4b: the accuracy of a file of a given size, without training",
    rows=tuple(row(measure, size) for size in SIZES for measure in WAYS if size >= SMALLEST.get(measure, 0)),
    columns=(
        "architecture", "method", "stored_bytes", "stored_top1", "kl_unseen", "agreement_unseen", "seconds", "status",
    ),
    pictures=("accuracy_vs_size",),
)  # fmt: skip
