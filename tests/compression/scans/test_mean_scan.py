"""Scans replaced: the choice of layers, refits in closed form, and what becomes of the model afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowrank_vit import InputError, MeanScan, channel_energy, compress, export, load, mean_scan, quantize, save
from lowrank_vit.architectures.vmamba import mixers
from lowrank_vit.compression.mean_scan import Impact, impacts, most_within, ranked
from lowrank_vit.modules.counting import parameter_count, scan_accumulates
from lowrank_vit.modules.scans import SmallScan
from lowrank_vit.stages.correct.regression import Regression
from tests.support.models import outputs, tiny
from tests.support.vmambas import ARGUMENTS, maps, vmamba

MADE = {name: value for name, value in ARGUMENTS["v2"].items() if name != "num_classes"}


def labelled(count: int = 24, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and of what the model answers, with some mistakes."""
    images = maps(count, seed)
    answers = vmamba()(images).argmax(1)
    answers[::5] = (answers[::5] + 1) % 5
    return list(zip(images.split(8), answers.split(8), strict=True))


def replaced(model: torch.nn.Module) -> list[str]:
    """The names of the smaller scans."""
    return [f"{name}.scan" for name, mixer in mixers(model).items() if isinstance(mixer.scan, SmallScan)]


def test_no_layer_is_the_dense_model() -> None:
    model, images = vmamba(), maps(5)
    small, report = mean_scan(model, labelled(), layers=0, device="cpu")
    assert torch.equal(small(images), model(images))
    assert (report["scan"]["K"], report["scan"]["replaced"]) == (0, [])


def test_the_least_important_scans_are_replaced() -> None:
    model = vmamba()
    small, report = mean_scan(model, labelled(), layers=2, device="cpu", held_out=[maps(8, 2)])
    entry = report["scan"]
    assert replaced(small) == entry["replaced"]
    assert len(entry["replaced"]) == entry["K"] == 2
    (kept,) = entry["impact"].keys() - entry["replaced"]
    worst = max(entry["impact"], key=lambda name: (entry["impact"][name]["top1"], entry["impact"][name]["kl"]))
    assert kept == worst
    assert entry["kl_held_out"] > 0
    again = mean_scan(model, labelled(), layers=2, device="cpu")[1]["scan"]
    assert again["replaced"] == entry["replaced"]


def test_an_impact_is_what_the_model_loses() -> None:
    model, (batch, *_) = vmamba(), labelled()
    images, labels = batch
    name = "layers.1.blocks.0.op.scan"
    small = MeanScan()(model.get_submodule(name), 24)
    found = impacts(model, {"it": {name: small}}, [batch])["it"]
    other, _ = mean_scan(model, [batch], layers=3, device="cpu")
    for each in ("layers.0.blocks.0.op", "layers.0.blocks.1.op"):
        other.get_submodule(each).scan = model.get_submodule(each).scan
    hits = [(each(images).argmax(1) == labels).float().mean() for each in (model, other)]
    assert found.top1 == pytest.approx(float(100 * (hits[0] - hits[1])))
    logs = [each(images).double().log_softmax(-1) for each in (model, other)]
    assert found.kl == pytest.approx(float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean()))


def test_without_labels_the_divergence_ranks() -> None:
    images = [batch for batch, _ in labelled()]
    _, report = mean_scan(vmamba(), images, layers=1, device="cpu")
    impact = report["scan"]["impact"]
    assert all(found["top1"] is None for found in impact.values())
    assert report["scan"]["replaced"] == [min(impact, key=lambda name: impact[name]["kl"])]
    with pytest.raises(InputError, match="labelled images"):
        mean_scan(vmamba(), images, drop=1.0, device="cpu")


def test_ranking_by_hand() -> None:
    found = {"a": Impact(1.0, 0.1), "b": Impact(0.0, 0.3), "c": Impact(0.0, 0.2), "d": Impact(0.0, 0.2)}
    assert ranked(found) == ["c", "d", "b", "a"]
    costs = {1: 0.5, 2: 2.0, 3: 1.0}
    chosen = {drop: most_within(drop, "abc", lambda names: Impact(costs[len(names)], 0.0))[0] for drop in (0, 1, 2, 9)}
    assert chosen == {0: [], 1: ["a"], 2: ["a", "b", "c"], 9: ["a", "b", "c"]}


def test_a_refit_is_the_least_squares_solution() -> None:
    """Of the first mixer: what is before it is not changed, so the targets are known."""
    model, images = vmamba(), maps(40)
    block = model.layers[0].blocks[0]
    x = block.norm(model.patch_embed(images))
    wanted = block.op(x).flatten(0, -2).double()
    for refit, width in (("dropped", 0), ("mean", 1), ("directions", 4), ("pooled", 12)):
        small, _ = mean_scan(model, images.split(10), layers=3, method=MeanScan(refit=refit), device="cpu")
        mixer = small.layers[0].blocks[0].op
        u, gate = mixer.read(mixer.in_proj(x))
        rows = [mixer.written(mixer.scan(u)[0], gate), *([mixer.scan.found(u)] if width else [])]
        features = torch.cat(rows, -1).flatten(0, -2).double()
        centred, mean = features - features.mean(0), features.mean(0)
        ridge = 1e-3 * features.square().mean()
        gram = centred.T @ centred / len(centred) + ridge * torch.eye(12 + width, dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0)) / len(centred))
        expected = features @ weight + wanted.mean(0) - mean @ weight
        torch.testing.assert_close(mixer(x).flatten(0, -2).double(), expected, rtol=1e-3, atol=1e-4)


def test_a_fit_without_bias_is_linear() -> None:
    torch.manual_seed(0)
    h, e = torch.randn(50, 4) + 1, torch.randn(50, 3)
    fit = Regression.empty(4, 3, bias=False)
    fit.add(h, e, torch.ones(50))
    weight, shift = fit.solve(0.0)
    assert not shift.any()
    torch.testing.assert_close(weight, torch.linalg.lstsq(h.double(), e.double()).solution, rtol=1e-4, atol=1e-5)
    gain = e.square().sum() - (e - h @ weight.float()).square().sum()
    assert fit.gain(weight, shift) == pytest.approx(float(gain), rel=1e-4)


METHODS = [
    MeanScan(),
    MeanScan(skip="channel"),
    MeanScan(mode="left_out"),
    *(MeanScan(refit=name) for name in ("dropped", "mean", "directions", "pooled")),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_replaced_model_is_saved_quantised_and_compressed(method: MeanScan, tmp_path: Path) -> None:
    model, images = vmamba(), maps(24)
    small, report = mean_scan(model, images.split(8), layers=2, method=method, device="cpu")
    assert parameter_count(small) == report["params"]["compressed"]
    save(small, tmp_path / "small", report, model_args=MADE)
    loaded = load(tmp_path / "small")
    assert torch.equal(outputs(loaded, images), outputs(small, images))
    coded, _ = quantize(loaded, 8)
    save(coded, tmp_path / "coded", model_args=MADE)
    assert torch.equal(outputs(load(tmp_path / "coded"), images), outputs(coded, images))
    assert scan_accumulates(small, (1, 8, 12)) < scan_accumulates(model, (1, 8, 12))
    less, after = compress(small, images.split(8), "exact", 0.2, device="cpu")
    assert after["scan"] == report["scan"]
    save(less, tmp_path / "less", after, model_args=MADE)
    assert torch.equal(outputs(load(tmp_path / "less"), images), outputs(less, images))


def test_recurrences_are_counted() -> None:
    """Of each scan: 9 L 4D N; two of 4 x 6 tokens and 12 channels, one of 2 x 3 and 24."""
    model = vmamba()
    assert scan_accumulates(model, (1, 8, 12)) == 9 * 4 * (2 * 24 * 12 + 6 * 24)
    small, _ = mean_scan(model, [maps(4)], layers=3, device="cpu")
    assert scan_accumulates(small, (1, 8, 12)) == 9 * 4 * (2 * 24 + 6)
    gone, _ = mean_scan(model, [maps(4)], layers=3, method=MeanScan(mode="left_out"), device="cpu")
    assert scan_accumulates(gone, (1, 8, 12)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [MeanScan(mode="left_out"), MeanScan(refit="mean")], ids=str)
@pytest.mark.parametrize("form", ["torch-export", "onnx"])
def test_exported_files_compute_the_same(method: MeanScan, form: str, tmp_path: Path) -> None:
    """One scan stays whole: it is exported by doubling."""
    model = vmamba()
    small, _ = mean_scan(model, [maps(8)], layers=2, method=method, device="cpu")
    export(small, tmp_path / "file", form)


def test_the_energy_that_channels_share() -> None:
    model, x = vmamba(), torch.randn(2, 4, 6, 12)
    mixer = model.layers[0].blocks[0].op
    u, _ = mixer.read(mixer.in_proj(x))
    y = mixer.scan(u)[0].double()
    constant, rest = y.mean(-1, keepdim=True).expand_as(y), y - y.mean(-1, keepdim=True)
    expected = constant.square().sum() / (constant.square().sum() + rest.square().sum())
    assert channel_energy(mixer, x) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 4}, "4 layers cannot be replaced: the model has 3 scans"),
        ({"layers": 1, "drop": 2.0}, "exclude each other"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mean_scan(vmamba(), labelled(), device="cpu", **options)


def test_methods_and_models_that_are_unknown_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown mode of a scan 'input': did you mean 'inputs'"):
        MeanScan("input")
    with pytest.raises(InputError, match="has no scans"):
        mean_scan(tiny(), [torch.randn(2, 1, 8, 8)], device="cpu")
