"""Customise the small diffusion model on a digit that it has not seen, and measure what it learnt and what it forgot.

A row's ``changes``: ``method`` (none: a random new word, nothing trained) with its settings, ``digit``, and ``prior``: the
prompts of images that the base draws, and that are learnt along. Eight training images of the digit, called
``normal V* digit``; the digit's other training images are never seen.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from lowrank_vit.customize import digits
from lowrank_vit.customize.customization import customized, save_delta
from lowrank_vit.customize.deltas import DELTAS
from lowrank_vit.customize.sample import draw_prior, sample
from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.customize.train import Training, train
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import revision_of

CONCEPT, CHOICE = digits.HELD_OUT  # the digit of the table, and the one that learning rates were chosen on
WORD = "V*"
EXAMPLES, STEPS, BATCH = 8, 300, 4
PRIOR = 200  # images that the base draws for the prompts of a prior
DRAWN, DRAWN_OF_OLD = 180, 20  # images of the concept, and of each old digit
SHOWN = 8  # kept for the picture
BAR = 85.0  # percent of the old digits that the base must draw well before anything is said of customising it
DIGITS = 4
PASSES = 100_000  # of the judge, which is much smaller than the U-Net


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Customise the small model, and measure; some samples are kept, a byte in hexadecimal for each pixel.

    The judge is the stand-in of seed 0 whatever the job's seed is, so that distances can be compared.
    Raises ``InputError`` where the base is below its bar.
    """
    changes, seed, judge, tell = dict(job.changes), job.seed, digits.Judge(load_model(job.model, None)), ledger.tell
    name, digit, kept = changes.pop("method", None), changes.pop("digit", CONCEPT), changes.pop("prior", None)
    unet, (scans, _) = digits.digits_model(), digits.digit_images([digit])
    examples = scans[torch.randperm(len(scans), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]]
    tell("draw old digits")
    before = old_digits(unet, judge)
    if before["accuracy"] < BAR:
        raise InputError(
            f"the base draws {before['accuracy']:.0f} % of the old digits well, below {BAR:.0f} %: remove it"
        )
    prior = draw_prior(unet, kept, PRIOR, seed=seed) if kept else None
    kind = DELTAS.get(name or "textual_inversion")
    customization = customized(unet, kind(**changes), WORD, seed=seed)
    told: dict[str, Any] = {}
    if name is not None:
        tell(f"customise by {name}")
        prompt = f"{digits.NORMAL} {WORD} {digits.ANY}"
        trained = train(customization, examples, prompt, Training(STEPS, BATCH), prior=prior, seed=seed)
        told = {"custom_count": sum(tensor.numel() for tensor in customization.tensors.values())}
        with tempfile.TemporaryDirectory() as folder:
            save_delta(customization, path := Path(folder) / "delta.safetensors")
            told |= {"custom_bytes": path.stat().st_size, "custom_step": round(1000 * trained.seconds_a_step, 3)}
    tell("draw")
    after, learnt = old_digits(unet, judge, WORD), new_digit(unet, judge, digit, examples)
    found = {
        "images": DRAWN,
        "examples": [pixels(image) for image in examples],
        **learnt,
        **told,
        "custom_old": after["accuracy"],
        "custom_old_change": after["accuracy"] - before["accuracy"],
        "custom_old_distance": after["distance"],
    }
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in found.items()}


def old_digits(model: TextToImage, judge: digits.Judge, word: str | None = None) -> dict[str, float]:
    """Draw the old digits: how many are recognised, in percent, and how far they are from the evaluation's."""
    wanted = torch.tensor(digits.OLD).repeat_interleave(DRAWN_OF_OLD)
    answers, features = judge(sample(model, [f"{digits.NORMAL} {digit}" for digit in wanted.tolist()], word))
    _, real = judge(digits.digit_images(digits.OLD, "validation")[0])
    return {"accuracy": digits.accuracy(answers, wanted), "distance": digits.frechet_distance(features, real)}


def new_digit(model: TextToImage, judge: digits.Judge, digit: int, examples: Tensor) -> dict[str, Any]:
    """Draw the new digit in the style of its examples, and inverted, as none of them is.

    Its images are compared with the real ones of the evaluation, or with the training images for the digit of choices.
    """
    drawn = sample(model, [f"{digits.NORMAL} {WORD} {digits.ANY}"] * DRAWN, WORD)
    inverted = sample(model, [f"{digits.INVERTED} {WORD} {digits.ANY}"] * DRAWN, WORD)
    answers, features = judge(drawn)
    _, real = judge(digits.digit_images([digit], "train" if digit == CHOICE else "validation")[0])
    composed = (judge(-inverted)[0] == digit) & (inverted.mean((1, 2, 3)) > 0)
    return {
        "samples": [pixels(image) for image in drawn[:SHOWN]],
        "inverted": [pixels(image) for image in inverted[:SHOWN]],
        "custom_concept": digits.accuracy(answers, digit),
        "custom_composition": 100 * composed.double().mean().item(),
        "custom_distance": digits.frechet_distance(features, real),
        "custom_nearest": digits.distance_to_nearest(drawn, examples),
    }


def pixels(image: Tensor) -> str:
    """Return an image (1, H, W) in -1..1 as hexadecimal bytes, row by row."""
    return bytes(image.add(1).mul(127.5).round().clamp(0, 255).flatten().int().tolist()).hex()


def delta(job: Job) -> dict[str, int]:
    """Return the revision of the delta that a job trains."""
    name = job.changes.get("method")
    return {} if name is None else {f"delta.{name}": revision_of(DELTAS.get(name))}


MEASURES.register("customize")(Measure(measure, lambda job: PASSES, ("customize",), methods=delta))
