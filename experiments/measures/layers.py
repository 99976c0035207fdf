"""Name blocks and layers, decompose them, and gather the statistics that all measurements share."""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import timm
import torch
from torch import nn

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from lowrank_vit import DECOMPOSITIONS, Hardware, collect, dense_weight
from lowrank_vit.data import ImageData
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site

DIGITS = 5  # decimals in the results
IN_BLOCK = re.compile(r"((?:.*\.)?blocks\.\d+)\.(.+)")


def block_of(site: Site) -> str:
    """Name the block that a layer is in: ``blocks.0``, in a Swin ``layers.1.blocks.0``."""
    return IN_BLOCK.fullmatch(site.name)[1]  # type: ignore[index]  # every measured layer is in a block


def layer_of(site: Site) -> str:
    """Name a layer within its block, the same in all blocks: ``attn.qkv``."""
    return IN_BLOCK.fullmatch(site.name)[2]  # type: ignore[index]


@cache
def blank(model: str) -> nn.Module:
    """Build a model, by timm's name, on no device."""
    with torch.device("meta"):
        network: nn.Module = timm.create_model(model)
    return network


def calibration_images(data: ImageData) -> Images:
    """Return the images that calibrate."""
    return Images(data.calibration_dataloader(), data.calibration_fingerprint)


def held_out_images(data: ImageData) -> Images:
    """Return the training images that are held out."""
    return Images(data.held_out_dataloader(), data.held_out_fingerprint)


def hardware_of(model: nn.Module) -> Hardware:
    """Return one device, of the kind that the model is on."""
    return Hardware(accelerator="gpu" if next(model.parameters()).is_cuda else "cpu")


def statistics(
    model: nn.Module, sites: Sequence[Site], seen: set[str], unseen: set[str], data: ImageData, seed: int
) -> dict[str, dict[str, Moments]]:
    """Collect the statistics ``seen`` of the "calibration" images and ``unseen`` of the "unseen" ones, by layer."""
    kinds = {"calibration": (seen, calibration_images(data)), "unseen": (unseen, held_out_images(data))}
    return {
        kind: collect(model, sites, frozenset(names), images, seed, False) for kind, (names, images) in kinds.items()
    }


def factors_by(
    method: str, model: nn.Module, sites: Sequence[Site], moments: Mapping[str, Moments]
) -> dict[str, Factors]:
    """Return all directions of every site by the decomposition called ``method``."""
    decomposition = DECOMPOSITIONS.get(method)()
    return {site.name: decomposition(dense_weight(model, site), moments[site.name]) for site in sites}


def image_counts(moments: Mapping[str, Mapping[str, Moments]]) -> dict[str, int]:
    """Count the images of both kinds."""
    return {kind: next(iter(by_layer.values())).images for kind, by_layer in moments.items()}
