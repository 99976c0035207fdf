"""Table 4: fewer parameters and fewer bits: size on disk against top-1.

Paper     Azizi, Nazemi, Pedram: Memory-Efficient Vision Transformers, 2024, Table 4, section 4.3 and appendix B
Command   python -m experiments run table4        (or: make reproduce-table4)
          python -m experiments run table4 --data imagefolder:IMAGENET --checkpoints WEIGHTS --devices 8

Weights of the blocks are rounded to nearest, one scale for each output channel of each factor; all else is float16. A
size is that of the file, scales, zero points and header included. Beyond the paper are the 4 and 6 bit rows of the
compressed models, those of 3 and 2 bits, and GPTQ, which feeds the errors back on the calibration images. All numbers of
bits share one compressed and fine-tuned model, which table 2's rows at -50 % share, too.

The printed 165.2 and 82.6 MiB are all parameters at 2 bytes. At 4 and 8 bits the same count, "size counted", is 41.3 MiB for
both; 42.2 and 41.7 are printed. Files of DeiT-B need 2.6 and 1.8 MiB beside the count, for what stays in float16, scales and
zero points: the printed sizes leave most of it out. No single rule gives both, and the paper does not say what it counts.
"""

from experiments.tables.architectures import DEIT_B, DEIT_T, Architecture
from experiments.tables.rows import Row, Table

PAPER = "Azizi et al. 2024, Table 4"
PRINTED = {  # MiB and top-1, by recipe (None: dense) and bits
    (None, 16): (165.2, 81.80),
    (None, 4): (42.2, 80.72),
    ("paper", 16): (82.6, 81.35),
    ("paper", 8): (41.7, 81.15),
}
BITS = (16, 8, 6, 4)
FEWER = (3, 2)
FED_BACK = (8, 6, 4, 3, 2)  # by GPTQ


def row(model: Architecture, recipe: str | None, percent: int, bits: int, quantizer: str = "") -> Row:
    """Return the row of the dense model or a compressed one, at a number of bits."""
    printed = model is DEIT_B and not quantizer
    size, top1 = PRINTED.get((recipe, bits), (None, None)) if printed else (None, None)
    method = "Baseline" if recipe is None else f"-{percent}% ({recipe})"
    words = [method, *(["by", quantizer.upper()] if quantizer else [])]
    name = "-".join(["dense" if recipe is None else f"{recipe}-{percent}", str(bits), *quantizer.split()])
    return Row.of(
        model, name, f"{' '.join(words)}, {'FP16' if bits == 16 else f'{bits}-bit'}", recipe,
        reduction=0.0 if recipe is None else percent / 100, top1_reported=top1, bits=bits, quantizer=quantizer or None,
        protocol="training-free" if recipe is None else "partial-ft", source=None if top1 is None else PAPER,
        printed={} if size is None else {"size_reported": size},
    )  # fmt: skip


def rows(model: Architecture, recipe: str | None, percent: int, few: bool = False) -> list[Row]:
    """List the rows of a model at the paper's numbers of bits; ``few``: at fewer, too, and by GPTQ."""
    nearest = [row(model, recipe, percent, bits) for bits in (*BITS, *(FEWER if few else ()))]
    return nearest + [row(model, recipe, percent, bits, "gptq") for bits in (FED_BACK if few else ())]


TABLE = Table(
    title="Table 4: compression and quantisation",
    rows=(
        *rows(DEIT_B, None, 0, few=True),
        *(each for recipe in ("paper", "loss_aware") for each in rows(DEIT_B, recipe, 50)),
        *rows(DEIT_B, "heads", 50, few=True),
        *rows(DEIT_T, None, 0, few=True),
        *rows(DEIT_T, "loss_aware", 25),
        *(each for percent in (25, 50) for each in rows(DEIT_T, "heads", percent, few=True)),
    ),
    columns=(
        "architecture", "method", "protocol", "bits", "size_reported", "size_counted", "file_bytes", "params",
        "top1_reported", "top1_dense", "top1_float", "accuracy", "seconds", "status",
    ),
    pictures=("accuracy_vs_size",),
)  # fmt: skip
