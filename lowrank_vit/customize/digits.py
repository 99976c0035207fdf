"""The small real model: a U-Net of diffusers that draws 8 x 8 digits from three words, two digits held out; and its judge.

Its prompts are a style (``normal``, or ``inverted``: black on white) and a digit, or the word ``digit`` for any of them. The
digits 4 and 7 are in none of its training images: 4 is the new thing that a customisation learns, 7 another one, for
choices. Positions of words do not count, since the U-Net has no position table for them.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.customize.text_to_image import TextToImage, WordTable
from lowrank_vit.customize.train import noise_loss
from lowrank_vit.data.digits import CLASSES, load_split
from lowrank_vit.runtime.extras import require
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import trained_once

HELD_OUT = (4, 7)  # the concept, and the digit that learning rates are chosen on
OLD = tuple(digit for digit in range(CLASSES) if digit not in HELD_OUT)
NORMAL, INVERTED, ANY = "normal", "inverted", "digit"
VOCABULARY = ("", NORMAL, INVERTED, ANY, *map(str, OLD))
WORDS, WIDTH = 3, 32
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,  # the number of heads, in spite of its name
    "norm_num_groups": 8,
}
Judged = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """Hold the training settings: AdamW on a cosine after a warm-up; the weights are averaged over the last steps (EMA)."""

    steps: int = 4000
    batch_size: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    warm_up: int = 100
    average: float = 0.995
    generic: float = 0.1  # share of the images called "digit"
    empty: float = 0.1  # share of the prompts without a word, for guidance


RECIPE = Recipe()


def digits_model(seed: int = 0, recipe: Recipe = RECIPE) -> TextToImage:
    """Return the small model of training run ``seed``, on the CPU: from the cache, else trained now and cached.

    Training takes five minutes. If several processes ask at once, the first one trains and the others wait. A damaged file
    is replaced, with a warning.
    """
    model = untrained(seed)
    content = json.dumps([UNET, SCHEDULE, VOCABULARY, asdict(recipe)], sort_keys=True)
    name = f"digits-seed{seed}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"
    path = cache_folder() / "diffusion" / name
    parts = nn.ModuleDict({"unet": model.unet, "text": model.text.encoder})

    def train() -> nn.Module:
        fit(model, seed, recipe)
        return parts

    trained_once(parts, path, train)
    return model


def untrained(seed: int = 0) -> TextToImage:
    """Build the small model with random weights."""
    require("the small diffusion model", "diffusers")
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TextToImage(UNet2DConditionModel(**UNET), WordTable(VOCABULARY, WIDTH, WORDS), SCHEDULE)


def digit_images(digits: Sequence[int], split: Literal["train", "validation"] = "train") -> tuple[Tensor, Tensor]:
    """Return the scans of some digits: images (N, 1, 8, 8) in -1..1, and which digits they are, (N,)."""
    scans, labels = load_split(split)
    chosen = np.isin(labels, digits)
    return torch.from_numpy(scans[chosen]).float().div(127.5).sub(1).unsqueeze(1), torch.from_numpy(labels[chosen])


def fit(model: TextToImage, seed: int, recipe: Recipe) -> None:
    """Train the U-Net and the table of words on the training scans of the old digits, in place; with a progress bar."""
    from diffusers import DDPMScheduler

    generator, noising = torch.Generator().manual_seed(seed), DDPMScheduler.from_config(dict(model.schedule))
    scans, labels = digit_images(OLD)
    words = model.text.tokens([str(digit) for digit in OLD])[:, 0]
    class_words = torch.zeros(CLASSES, dtype=torch.long).index_copy(0, torch.tensor(OLD), words)
    parameters = [*model.unet.parameters(), *model.text.encoder.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / recipe.warm_up) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)),
    )
    for step in track(range(recipe.steps), "training a diffusion model on the digits", shown=True):
        batch = torch.randint(len(scans), (recipe.batch_size,), generator=generator)
        images, tokens = _examples(model, scans[batch], class_words[labels[batch]], recipe, generator)
        loss = noise_loss(model, noising, images, model.text.encode(tokens), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        newest = max(1 - recipe.average, 9 / (10 + step))  # the first steps are soon forgotten
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], newest)
    for parameter, average in zip(parameters, averages, strict=True):
        parameter.data.copy_(average)
        parameter.requires_grad_(False)


def _examples(
    model: TextToImage, scans: Tensor, words: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a style for each scan, name it in the prompt, call some "digit", and leave some prompts empty."""
    inverted, generic, empty = (
        torch.rand(len(scans), generator=generator) < share for share in (0.5, recipe.generic, recipe.empty)
    )
    normal_word, inverted_word, any_word = model.text.tokens([NORMAL, INVERTED, ANY])[:, 0]
    styles = torch.where(inverted, inverted_word, normal_word)
    tokens = torch.stack([styles, torch.where(generic, any_word, words), torch.zeros_like(words)], 1)
    return torch.where(inverted.view(-1, 1, 1, 1), -scans, scans), tokens.masked_fill(empty[:, None], 0)


class Judge:
    """Judge images by an outside classifier of the digits: images (N, 1, 8, 8) in -1..1 to answers and features."""

    def __init__(self, classifier: nn.Module) -> None:
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(classifier)
        self.classifier = classifier.eval()
        self.mean, self.std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Judged:
        """Return the recognised digits (N,) and the pooled features before the classifier, float64 (N, width)."""
        classifier = self.classifier
        device = next(classifier.parameters()).device
        inputs = (((images + 1) / 2 - self.mean) / self.std).to(device)
        pooled = classifier.forward_head(classifier.forward_features(inputs), pre_logits=True)  # type: ignore[operator]
        return classifier.get_classifier()(pooled).argmax(1).cpu(), pooled.double().cpu()  # type: ignore[operator]


def accuracy(answers: Tensor, digits: Tensor | int) -> float:
    """Return how many answers are right, in percent."""
    return 100 * (answers == digits).double().mean().item()


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the squared Wasserstein distance between normal distributions fitted to two sets of features, float64.

    ``|m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)`` with means m and covariances A, B (n - 1); features: (N, width).

    >>> frechet_distance(torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[3.0], [7.0]]).double())  # 4^2 + (2 - 1)^2 2
    18.0
    """
    difference = features.mean(0) - others.mean(0)
    first, second = (torch.atleast_2d(torch.cov(each.T)) for each in (features, others))
    root = _root(first)
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = difference.square().sum() + first.trace() + second.trace() - 2 * overlap
    return round(distance.item(), 10)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def distance_to_nearest(images: Tensor, known: Tensor) -> float:
    """Return the mean over images (N, C, H, W) of the Euclidean distance to the nearest of ``known``: 0 for copies."""
    return torch.cdist(images.flatten(1), known.flatten(1)).amin(1).mean().item()
