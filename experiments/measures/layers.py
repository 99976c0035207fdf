"""Name blocks and layers, decompose them, and gather the statistics that all measurements share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from lowrank_vit import DECOMPOSITIONS, collect, dense_weight, find_sites
from lowrank_vit.data import ImageData
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site

DIGITS = 5  # decimals in the results


def block_of(site: Site) -> str:
    """Name the block that a layer is in: ``blocks.0``, in a Swin ``layers.1.blocks.0``."""
    return _parts(site)[0]


def layer_of(site: Site) -> str:
    """Name a layer within its block, the same in all blocks: ``attn.qkv``."""
    return _parts(site)[1]


def _parts(site: Site) -> tuple[str, str]:
    parts = re.fullmatch(r"((?:.*\.)?blocks\.\d+)\.(.+)", site.name)
    assert parts is not None, f"{site.name} is in no block"
    return parts[1], parts[2]


@cache
def sites_of(model: str) -> list[Site]:
    """List the layers of the model of that name, which is not built in memory."""
    import timm

    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)

    with torch.device("meta"):
        return find_sites(timm.create_model(model, pretrained=False))


def seen_and_unseen(
    model: nn.Module, sites: Sequence[Site], seen: Iterable[str], unseen: Iterable[str], data: ImageData, seed: int
) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Collect the statistics ``seen`` of the calibration images and ``unseen`` of the held-out images."""
    calibration = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    held_out = Images(data.held_out_dataloader(), data.held_out_fingerprint)
    return (
        collect(model, sites, frozenset(seen), calibration, seed, False),
        collect(model, sites, frozenset(unseen), held_out, seed, False),
    )


def factors_by(
    method: str, model: nn.Module, sites: Sequence[Site], moments: Mapping[str, Moments]
) -> dict[str, Factors]:
    """Return all directions of every site by the decomposition called ``method``."""
    decomposition = DECOMPOSITIONS.get(method)()
    return {site.name: decomposition(dense_weight(model, site), moments[site.name]) for site in sites}


def rounded(values: Tensor) -> list[float]:
    """Return plain numbers, which JSON can hold."""
    return [round(value, DIGITS) for value in values.tolist()]


def image_counts(seen: Mapping[str, Moments], unseen: Mapping[str, Moments]) -> dict[str, int]:
    """Count the images of both kinds."""
    return {kind: next(iter(moments.values())).images for kind, moments in (("calibration", seen), ("unseen", unseen))}
