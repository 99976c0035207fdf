"""How a stand-in is trained on the digits: one short recipe for all of them, deterministic by seed."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.data.digits import load_split
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import trained_once


@dataclass(frozen=True)
class Recipe:
    """Hold the training settings: AdamW on a one-cycle cosine schedule, images shifted by at most one pixel at random.

    ``gain`` scales the normal initial weights, ``gain / sqrt(fan_in)``: timm's 0.02 is made for widths of hundreds and
    learns slowly at 24; with 1.0 the spectrum stays as flat as that of noise, and any truncation destroys the model.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 6e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    warm_up: float = 0.1
    shift_probability: float = 0.5
    gain: float = 0.7


RECIPE = Recipe()


def train_standin(name: str, seed: int, recipe: Recipe = RECIPE) -> nn.Module:
    """Train the stand-in ``name`` on the digits' training split and return it in eval mode, on the CPU.

    The same seed gives the same weights: one thread, one random generator; the caller's random state is unchanged.
    Takes ten to twenty seconds; a progress bar goes to stderr.
    """
    with _private_randomness(seed):
        model = timm.create_model(name)
        _initialise(model, recipe.gain)
        _fit(model, name, recipe)
    model.zero_grad(set_to_none=True)
    return model.eval()


@contextlib.contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    """Seed torch, use one thread and enable gradients within the block; restore everything after it."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)  # sums in one order; and layers this small gain nothing from a second thread
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _initialise(model: nn.Module, gain: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_features))
        elif isinstance(module, nn.Conv2d):  # the patch embedding
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
    position = getattr(model, "pos_embed", None)  # Swin has none
    if isinstance(position, nn.Parameter):
        nn.init.normal_(position, std=0.3)


def _fit(model: nn.Module, name: str, recipe: Recipe) -> None:
    scans, targets = load_split("train")
    images = torch.from_numpy(scans).float().div(255).unsqueeze(1)
    labels = torch.from_numpy(targets)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=recipe.epochs * math.ceil(len(images) / recipe.batch_size),
        pct_start=recipe.warm_up,
    )
    model.train()
    for _ in track(range(recipe.epochs), f"training {name} on the digits", shown=True):
        for batch in torch.randperm(len(images)).split(recipe.batch_size):
            inputs = (_shifted(images[batch], recipe.shift_probability) - mean) / std
            loss = F.cross_entropy(model(inputs), labels[batch], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _shifted(images: Tensor, probability: float) -> Tensor:
    """Move each image (N, 1, H, W) by -1, 0 or 1 pixel along both axes, with the given probability; pad with zeros."""
    count, _, height, width = images.shape
    moves = torch.randint(0, 3, (count, 2))
    moves[torch.rand(count) >= probability] = 1  # the middle of the padded image: where it was
    rows = moves[:, :1, None] + torch.arange(height).view(1, -1, 1)
    columns = moves[:, None, 1:] + torch.arange(width).view(1, 1, -1)
    padded = F.pad(images, (1, 1, 1, 1))
    return padded[torch.arange(count).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


def trained_standin(name: str, seed: int = 0) -> nn.Module:
    """Return the stand-in ``name`` of training run ``seed`` in eval mode: from the cache, else trained now and cached.

    If several processes ask at once, the first one trains and the others wait. A damaged file is replaced,
    with a warning. A model that cannot be cached, because the folder is not writable, is returned with a warning.
    """
    model = timm.create_model(name).eval()
    path = cache_folder() / "standins" / f"{name}-seed{seed}-{_fingerprint(model)}.safetensors"
    return trained_once(model, path, lambda: train_standin(name, seed))


def _fingerprint(model: nn.Module) -> str:
    """Hash what the weights depend on besides the seed: the architecture, the normalisation and the recipe."""
    content = {
        "architecture": repr(model),  # the activation, the window shifts and the like do not show in the shapes
        "shapes": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
        "data": timm.data.resolve_model_data_config(model),
        "recipe": asdict(RECIPE),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
