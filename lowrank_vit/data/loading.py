"""From an image split, or from batches of the caller's own, to batches of tensors."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from timm.data import DEFAULT_CROP_PCT, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lowrank_vit.data.decoding import MODES, to_channels
from lowrank_vit.data.sampling import Draw
from lowrank_vit.data.splits import ImageSplit
from lowrank_vit.records.images import Batches, Images, each_batch
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.hardware import Hardware
from lowrank_vit.runtime.processes import own_cores

MOST_WORKERS = 16
LARGEST, SMALLEST_CROP = 8192, 0.05  # pixels; share of the side
CROP_AREA, CROP_RATIO, FLIPS = (0.08, 1.0), (3 / 4, 4 / 3), 0.5  # share of the area, width by height, share of images
Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(data_config: Mapping[str, Any]) -> Transform:
    """Make timm's evaluation transform of a model's data config: resize, crop at the centre, normalise."""
    return create_transform(**data_config, is_training=False)


def resized_side(data_config: Mapping[str, Any]) -> int:
    """Return the upper bound of an image's shorter side after the evaluation transform's resize, in pixels."""
    return math.ceil(max(data_config["input_size"][1:]) / data_config.get("crop_pct", DEFAULT_CROP_PCT))


def training_transform(data_config: Mapping[str, Any]) -> Transform:
    """Make the training transform: a random resized crop and flip, then the model's normalisation; nothing else."""
    settings = {key: data_config[key] for key in ("input_size", "interpolation", "mean", "std") if key in data_config}
    settings |= {"scale": CROP_AREA, "ratio": CROP_RATIO, "hflip": FLIPS}
    settings |= {"color_jitter": None, "auto_augment": None, "re_prob": 0.0}
    return create_transform(**settings, is_training=True)


def augmentation_record(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report's entry on the training transform."""
    crops = {"crop_area": [*CROP_AREA], "crop_ratio": [*CROP_RATIO]}
    return {**crops, "flips": FLIPS, "interpolation": data_config.get("interpolation", "bilinear")}


def input_channels(data_config: Mapping[str, Any]) -> int:
    """Return the number of channels that the data config asks for. Raises ``InputError`` if it is neither 1 nor 3."""
    size = data_config.get("input_size")
    if not size or len(size) != 3 or size[0] not in MODES:
        raise InputError(
            f"the data config's input_size is {size!r}; expected (channels, height, width) with 1 or 3 channels, "
            "as timm.data.resolve_model_data_config(model) gives it"
        )
    _try(data_config)
    return int(size[0])


def _try(data_config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` unless the data config, which may come from a saved folder, can transform an image."""
    channels, height, width = data_config["input_size"]
    try:
        if not (0 < height <= LARGEST and 0 < width <= LARGEST and data_config.get("crop_pct", 1) >= SMALLEST_CROP):
            raise ValueError("its size or crop is out of range")
        image = Image.new(MODES[channels], (8, 8))
        with isolate_rng():
            for transform in (evaluation_transform(data_config), training_transform(data_config)):
                if transform(image).shape != (channels, height, width):
                    raise ValueError("its images come out in another shape")
    except Exception as error:  # of timm or torchvision, at any step
        raise InputError(f"the data config cannot be used ({reason_of(error)}): {dict(data_config)}") from None


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Serve the images of ``split`` at ``indices``, in this order, converted and transformed: (C, H, W) float32 and label.

    An item is a position in ``indices``, or a ``Draw``: then the transform's randomness comes from its seed alone.
    """

    def __init__(self, split: ImageSplit, indices: Sequence[int], transform: Transform, channels: int) -> None:
        self.split = split
        self.indices = indices
        self.transform = transform
        self.channels = channels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int | Draw) -> tuple[Tensor, int]:
        position = item.position if isinstance(item, Draw) else item
        image, label = self.split[self.indices[position]]
        converted = to_channels(image, self.channels)
        with _seeded(item.seed) if isinstance(item, Draw) else contextlib.nullcontext():
            return self.transform(converted), label


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed both generators that timm's transforms draw from within the block, and restore them after it."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPU's generator as well
        try:
            yield
        finally:
            random.setstate(state)


class ImageLoader(DataLoader[tuple[Tensor, int]]):
    """Load batches, and report a broken image in one line, where PyTorch would pass on its worker's whole traceback.

    Workers that are kept for the next epoch end with the loader, and at an error; Lightning ends them with its run.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        try:
            yield from batches
            return
        except InputError as error:
            line = str(error).strip().splitlines()[-1]
        self._iterator = None
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()  # now, and not when Python collects the error, whose frames hold the iterator
        raise InputError(line.removeprefix(f"{InputError.__module__}.{InputError.__name__}: "))


def make_loader(
    images: TransformedImages, sampler: Sampler[Any], batch_size: int, workers: int, *, again: bool = False
) -> ImageLoader:
    """Make a loader of batches (N, C, H, W) with labels (N,), the last smaller; the global random state is not used.

    ``again``: it will be iterated more than once, so its workers stay. One iteration at a time, then. Each worker loads
    two batches ahead.
    """
    return ImageLoader(
        images,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=again and workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # workers' seeds come from it instead of from the global one
    )


def default_workers(jobs: int = 1) -> int:
    """Return the number of worker processes: one for each core of this process, which ``jobs`` share; at most 16."""
    return min(max(1, own_cores() // jobs), MOST_WORKERS)


class GivenBatches(LightningDataModule):
    """Train on batches as they come, in the same order in every epoch unless they shuffle themselves."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Batches:
        return self.batches if isinstance(self.batches, DataLoader) else each_batch(self.batches)


def as_data_module(data: LightningDataModule | Batches, hardware: Hardware) -> LightningDataModule:
    """Return a data module that serves batches. Raises ``InputError`` for what is no batches, and for several processes."""
    if isinstance(data, LightningDataModule):
        return data
    batches = Images.of(data).batches
    if isinstance(batches, Iterator) or not hasattr(batches, "__len__"):
        raise InputError("the training images are gone through more than once: pass a list or a data loader")
    with suppress(TypeError):  # a loader of a stream has no length
        if not len(batches):  # type: ignore[arg-type]
            raise InputError("no images to train on: the data set is empty")
    if hardware.processes > 1:
        raise InputError("several processes cannot share a list of batches: pass a data module, such as ImageData")
    return GivenBatches(batches)
