"""Table D: a small diffusion model customised to a digit that it has never seen, by COMCAT's deltas and by others.

Sources   Xiao et al. 2023 (COMCAT, arXiv 2305.17235), tables 5 and 6, whose models and images are other ones; Hu et al. 2021
          (LoRA); Kumari et al. 2022 (Custom Diffusion); Ruiz et al. 2022 (DreamBooth); Gal et al. 2022 (textual inversion)
Command   python -m experiments run table_customize

A U-Net of diffusers draws 8 x 8 digits from three words; 4 and 7 were held out of its training. Eight training images of a 4
are called ``normal V* digit``; 300 steps of 4 images. With a prior (Ruiz et al. 2022, section 3.3), 200 images that the base
draws are learnt along: of the class, as in DreamBooth, or of each old digit by its name. DDIM, 25 steps, guidance 2. Judge:
the stand-in digits_deit_small.
"""

from typing import Any

from experiments.tables.architectures import Architecture
from experiments.tables.rows import Row, Table

UNET = Architecture("unet", "U-Net on digits", "digits_deit_small", "digits_deit_small")  # named is the judge
OLD = [f"normal {digit}" for digit in (0, 1, 2, 3, 5, 6, 8, 9)]  # what is not to be forgotten
CLASS = [f"{style} digit" for style in ("normal", "inverted")]  # what the new thing is one of, in both styles
COMCAT: dict[str, Any] = {"method": "comcat", "rank": 2, "learning_rate": 1e-2}
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "learning_rate": 3e-3}
DREAMBOOTH: dict[str, Any] = {"method": "dreambooth", "learning_rate": 3e-4}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # row: method, settings
    "none": ("None: a random new word", {}),
    "comcat": ("COMCAT, r = 2, zero start", COMCAT),
    "comcat-cross": ("COMCAT, r = 2, to the prompt only", COMCAT | {"layers": "cross"}),
    "comcat-random": ("COMCAT, r = 2, as printed", COMCAT | {"zero_start": False}),
    "comcat-class": ("COMCAT, r = 2, prior of the class", COMCAT | {"prior": CLASS}),
    "comcat-prior": ("COMCAT, r = 2, prior of the old digits", COMCAT | {"prior": OLD}),
    "lora-2": ("LoRA, rank 2", LORA | {"rank": 2, "learning_rate": 1e-2}),
    "lora-4": ("LoRA, rank 4", LORA),
    "custom_diffusion": ("Custom Diffusion", {"method": "custom_diffusion", "learning_rate": 3e-3}),
    "lora-4-prior": ("LoRA, rank 4, prior of the old digits", LORA | {"learning_rate": 1e-2, "prior": OLD}),
    "dreambooth": ("DreamBooth", DREAMBOOTH),
    "dreambooth-class": ("DreamBooth, prior of the class", DREAMBOOTH | {"prior": CLASS}),
    "dreambooth-prior": ("DreamBooth, prior of the old digits", DREAMBOOTH | {"learning_rate": 1e-3, "prior": OLD}),
    "textual_inversion": ("Textual inversion", {"method": "textual_inversion", "learning_rate": 1e-1}),
}
ROWS = tuple(
    Row.measuring(UNET, name, method, "customize", changes=changes, protocol="customised" if changes else "as it is")
    for name, (method, changes) in METHODS.items()
)

TABLE = Table(
    title="Table D: a diffusion model customised to a new digit",
    rows=ROWS,
    columns=(
        "method", "custom_count", "custom_bytes", "custom_concept", "custom_composition", "custom_distance",
        "custom_nearest", "custom_old", "custom_old_change", "custom_old_distance", "custom_step", "seconds", "status",
    ),
    pictures=(),
)  # fmt: skip
