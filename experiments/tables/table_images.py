"""Table I, images: what more images bring, for the calibration of ``heads`` and for a distillation behind it.

Source    this project (docs/guides/data.md)
Command   python -m experiments run table_images
          python -m experiments run table_images/deit_t --data joined:PHOTOS,imagefolder:IMAGES --checkpoints WEIGHTS

The same images calibrate the compression and train the smaller model towards the dense one, at one budget: 9,000 images
pass through the training, however many different ones there are. PHOTOS is a folder of images without labels; they join the
training images of IMAGES, and what is evaluated stays as it was. Others with the most images: "mixed", where up to half
of each image is another one (mixup), and ``best`` for ``heads``. From the latter, at the smaller size, twice as many passes,
and as many with Muon for AdamW. KL unseen is of training images that are held out.
"""

from typing import Any

from experiments.tables.architectures import DEIT_B, DEIT_T, Architecture
from experiments.tables.rows import Row, Table
from experiments.tables.table_best import PROTOCOL

PASSES, MORE_PASSES = 9_000, 18_000
COUNTS = (125, 250, 500, 1000, 2250, 4500)  # divisors of the budget
MOST = {DEIT_B: 1000, DEIT_T: 4500}  # the digits have 1,297 training images
VARIANTS: tuple[tuple[str, str, str, int, dict[str, Any]], ...] = (  # row, method, recipe, image passes, fields
    ("distilled", "heads, distilled", "heads", PASSES, {}),
    ("mixed", "heads, distilled, mixed", "heads", PASSES, {"distill_changes": {"mix": 0.5}}),
    ("pivoted", "best, distilled", "best", PASSES, {}),
    ("longer", f"best, {MORE_PASSES:,} passes", "best", MORE_PASSES, {}),
    ("muon", "best, distilled by Muon", "best", PASSES, {"distill_changes": {"optimizer": "muon"}}),
)
REDUCTIONS = {DEIT_B: (50, 70), DEIT_T: (40, 50)}  # in percent; the stand-ins lose little at 40


def rows(model: Architecture) -> list[Row]:
    """List the training at all numbers of images, and its variants where there are many: all of them at the smaller size."""
    return [
        Row.of(
            model, f"{name}-{count}-{percent}", method, recipe, reduction=percent / 100, protocol=PROTOCOL,
            distill_epochs=passes // count, calibration_images=count, embedded_seeds=(0,), **fields,
        )
        for percent in REDUCTIONS[model]
        for count in COUNTS
        for name, method, recipe, passes, fields in (
            VARIANTS[:1] if count != MOST[model] else VARIANTS if percent == max(REDUCTIONS[model]) else VARIANTS[:3]
        )
    ]  # fmt: skip


TABLE = Table(
    title="Table I: top-1 against the number of images",
    rows=tuple(row for model in REDUCTIONS for row in rows(model)),
    columns=(
        "architecture", "method", "reduction", "calibration_images", "params", "top1_dense", "top1_before_finetune", "top1",
        "kl_unseen", "seconds", "status",
    ),
    pictures=(),
)  # fmt: skip
