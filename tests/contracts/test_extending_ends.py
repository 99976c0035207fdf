"""What CONTRIBUTING.md promises, at both ends: a source of images, an allocator, a method of rounding, a format of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from lowrank_vit import InputError, compress, get_recipe, quantize, save
from lowrank_vit.cli import main
from lowrank_vit.data import ImageData, ImageSource
from lowrank_vit.data.splits import SOURCES, SourceKind
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, total_cost
from lowrank_vit.stages.export.formats import EXPORTERS, Run
from lowrank_vit.stages.quantize import QUANTIZERS, Codes
from lowrank_vit.stages.quantize.nearest import grid
from tests.support.extending import registered
from tests.support.models import images, outputs, tiny

pytestmark = pytest.mark.slow


# --8<-- [start:source]
class Stripes:
    """Grey images of 8 x 8 pixels, each of one brightness, its label: whether it is bright."""

    def __init__(self, count: int) -> None:
        self.shades = [255 * index // count for index in range(count)]
        self.labels = [int(shade > 127) for shade in self.shades]

    def content(self, index: int) -> bytes:
        return bytes([self.shades[index]])

    def reduced(self, side: int) -> "Stripes":
        return self

    def __len__(self) -> int:
        return len(self.shades)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (8, 8), self.shades[index]), self.labels[index]


def open_stripes(spec: str, target: str) -> ImageSource:
    """Open ``stripes:COUNT``; in a file of its own it is decorated by ``@source("stripes", "stripes:COUNT")``."""
    if not target.isdigit():
        raise InputError(f"{spec!r} names no number of images: write stripes:COUNT")
    return ImageSource(spec, 2, Stripes(int(target)), Stripes(10))


def test_a_new_source() -> None:
    config = {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,), "crop_pct": 1.0, "interpolation": "bilinear"}
    with registered(SOURCES, "stripes", SourceKind("stripes:COUNT", open_stripes)):
        data = ImageData("stripes:60", config, calibration_samples=40, held_out_samples=20)
        seen = torch.cat([batch[0] for batch in data.calibration_dataloader()])
        assert seen.shape == (40, 1, 8, 8)
        assert sorted(round(255 * float(image[0, 0, 0])) for image in seen) == sorted(
            255 * index // 60 for index in data.calibration_indices
        )
        with pytest.raises(InputError, match="names no number of images"):
            ImageData("stripes:many", config).num_classes  # noqa: B018
    with pytest.raises(InputError, match="unknown data source"):
        ImageData("stripes:60", config).num_classes  # noqa: B018


# --8<-- [end:source]


# --8<-- [start:allocator]
@dataclass(frozen=True)
class SameRank:
    """Give all units the same rank, the largest that fits, or as many directions as they have."""

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        """Choose a rank for every curve."""
        best: dict[str, int | None] = {}
        for rank in range(1, 1 + max(curve.ranks[-1] for curve in curves)):
            ranks: dict[str, int | None] = {curve.name: min(rank, curve.ranks[-1]) for curve in curves}
            best = ranks if total_cost(curves, ranks) <= budget else best
        return RankPlan(best)


def test_a_new_allocator() -> None:
    with registered(ALLOCATORS, "same_rank", SameRank):
        _, report = compress(tiny(), [images(8)], get_recipe("svd").but(allocator="same_rank"), 0.4)
    assert report["recipe_fields"]["allocator"] == "same_rank"
    assert len({layer["rank"] for layer in report["layers"]}) == 1
    one_more = sum(layer["in_features"] + layer["out_features"] for layer in report["layers"])
    kept, allowed = report["params"]["compressed"], 0.6 * report["params"]["dense"]
    assert kept <= allowed < kept + one_more


# --8<-- [end:allocator]


# --8<-- [start:quantizer]
@dataclass(frozen=True)
class RoundDown:
    """Round each weight to the code below."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, bits: int, name: str = "the weight", moment: Tensor | None = None) -> Codes:
        """Return codes, scales and zero points."""
        scale, zero_point = grid(weight.double(), bits, 1.0, name)
        codes = ((weight.double() / scale.double()[:, None]).floor() + zero_point[:, None]).clamp(0, 2**bits - 1)
        return codes.to(torch.uint8), scale, zero_point.to(torch.uint8)


def test_a_new_method_of_rounding() -> None:
    model = tiny()
    with registered(QUANTIZERS, "round_down", RoundDown):
        small, addition = quantize(model, 4, quantizer="round_down")
    assert addition["quantization"]["bits"] == 4
    rounded = {name: module for name, module in small.named_modules() if isinstance(module, QuantizedLinear)}
    assert rounded
    for name, module in rounded.items():
        lost = model.get_submodule(name).weight.double() - module.weight.double()
        step = module.scale.double()[:, None]
        inside = lost < step  # but for the ends of the range, which the zero point may shift by half a step
        assert inside.double().mean() > 0.9
        assert (lost > -step).all()
        assert lost.mean() > 0.2 * step.mean()  # half a step, by chance; to the nearest it would be none


# --8<-- [end:quantizer]


# --8<-- [start:exporter]
class Pickled:
    """Write a file for ``torch.load``, where this package is installed."""

    suffix: ClassVar[str] = ".pt"
    reader: ClassVar[str] = "torch.load"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[float] = 0.0

    def write(self, model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
        """Write the whole module."""
        torch.save(model, path)

    def run(self, path: Path) -> Run:
        """Load it."""
        model: nn.Module = torch.load(path, weights_only=False)
        return model


def test_a_new_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_default_dtype(torch.float32)  # as files have it
    folder, out = tmp_path / "small", tmp_path / "small.pt"
    model = compress(timm.create_model("digits_deit_small", depth=1), [torch.randn(16, 1, 8, 8)], "svd", 0.3)[0]
    save(model, folder, model_args={"depth": 1})
    with registered(EXPORTERS, "pickled", Pickled):
        main(["list", "exporters"])
        assert "pickled       Write a file for ``torch.load``" in capsys.readouterr().out
        main(["export", str(folder), "--format", "pickled", "--out", str(out)])
    assert "0.0e+00 at batch 1, 0.0e+00 at batch 3" in capsys.readouterr().out
    data = torch.randn(5, 1, 8, 8)
    assert torch.equal(Pickled().run(out)(data), outputs(model, data))
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--format", "pickled", "--out", str(tmp_path / "other")])


# --8<-- [end:exporter]
