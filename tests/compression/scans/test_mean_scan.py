"""Scans replaced: the choice of layers, refits in closed form, and what becomes of the model afterwards."""

import pytest
import torch
from torch import Tensor

from lowrank_vit import MeanScan, mean_scan
from lowrank_vit.architectures.vmamba import mixers
from lowrank_vit.compression.mean_scan import Impact, impacts, most_within, ranked
from lowrank_vit.modules.scans import SmallScan
from lowrank_vit.stages.correct.regression import Regression
from tests.support.vmambas import maps, vmamba


def labelled(count: int = 24, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and of what the model answers, with some mistakes."""
    images = maps(count, seed)
    answers = vmamba()(images).argmax(1)
    answers[::5] = (answers[::5] + 1) % 5
    return list(zip(images.split(8), answers.split(8), strict=True))


def replaced(model: torch.nn.Module) -> list[str]:
    """The names of the smaller scans."""
    return [f"{name}.scan" for name, mixer in mixers(model).items() if isinstance(mixer.scan, SmallScan)]


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
