"""Streaming statistics against their definitions on inputs and gradients that are kept; their labels; their cache."""

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.objectives.classification import probe_signs, sample_labels
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite, Site
from lowrank_vit.stages.calibrate import cache
from lowrank_vit.stages.calibrate.observe import resolve
from lowrank_vit.stages.calibrate.statistics import STATISTICS
from lowrank_vit.stages.calibrate.stream import calibrate
from tests.support.hostile import full_disk
from tests.support.layer import dense_moments
from tests.support.models import images, modules_of, tiny
from tests.support.processes import beside_another

KINDS = ["vit", "swin"]

EVERYTHING = frozenset(
    {*STATISTICS.names(), "second", "normalised_second"} - {"normalised_output_second", "scan_change"}
)


def kept(kind: str, data: Tensor) -> tuple[nn.Module, list[Site], dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and gradients of every site, one image at a time, with the labels that ``calibrate`` draws."""
    model, found = tiny(kind), {}
    sites = find_sites(model)
    for site in sites:
        found[site.name] = ([], [])

        def see(module: nn.Module, inputs: tuple, output: Tensor, site: Site = site) -> None:
            found[site.name][0].append(inputs[0].detach())
            output.register_hook(lambda g: found[site.name][1].append(g.detach()))

        get_linear(model, site).register_forward_hook(see)
    for image in data:
        logits = model(image[None])
        nn.functional.cross_entropy(logits, sample_labels(logits, image[None], 0)).backward()
    kept_all = {
        name: (
            torch.stack([x.reshape(-1, x.shape[-1]) for x in inputs]),
            torch.stack([g.reshape(-1, g.shape[-1]) for g in gradients]),
        )
        for name, (inputs, gradients) in found.items()
    }
    return tiny(kind), sites, kept_all


def assert_same(one: Moments, other: Moments, rtol: float = 2e-4) -> None:
    assert (one.images, one.tokens) == (other.images, other.tokens)
    for name, total in one.sums.items():
        scale = float(other.sums[name].abs().max())
        torch.testing.assert_close(total, other.sums[name].double(), rtol=rtol, atol=rtol * scale, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_statistic_equals_its_definition(kind: str) -> None:
    data = images(12, kind)
    model, sites, truth = kept(kind, data)
    moments = calibrate(model, sites, EVERYTHING, data.split(5))
    assert len(sites) == 4 * (2 if kind == "vit" else 4)
    for site in sites:
        inputs, gradients = truth[site.name]
        weight = get_linear(model, site).weight.detach().T
        dense = dense_moments(weight.double(), inputs.double(), gradients.double())
        dense.sums["gradient_abs"] = (inputs.mT @ gradients).abs().sum(0)  # of each image
        own = moments[site.name]
        if kind == "swin" and site.name.endswith(("qkv", "proj")):  # which see windows of 16 tokens
            dense.sums["representative_windows"] = torch.tensor(inputs.shape[:-1].numel() / 16)
        assert_same(own, dense)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_moments_are_those_of_the_whole(kind: str) -> None:
    data = images(20, kind)
    model = tiny(kind)
    sites = find_sites(model)
    whole = calibrate(model, sites, EVERYTHING, data.split(20))
    first, second = (calibrate(model, sites, EVERYTHING, part.split(4)) for part in (data[:12], data[12:]))
    for site in sites:
        assert_same(first[site.name] + second[site.name], whole[site.name])


@pytest.mark.parametrize("kind", KINDS)
def test_head_fisher_is_that_of_a_matrix_between_queries_and_keys(kind: str) -> None:
    """The truth: a matrix B = I between the two of every head, and autograd's gradient with respect to it."""
    data, model = images(6, kind), tiny(kind)
    sites = [half.qkv for half in modules_of(model) if isinstance(half, AttentionSite)]
    between, truth = {}, {}
    for site in sites:
        width = site.out_features // 3
        size = width // site.heads
        between[site.name] = torch.eye(size).repeat(site.heads, 1, 1).requires_grad_()
        truth[site.name] = [torch.zeros(site.heads, size, size, dtype=torch.float64) for _ in range(2)]

        def turn(module: nn.Module, inputs: tuple, output: Tensor, name: str = site.name, width: int = width) -> Tensor:
            queries = output[..., :width].unflatten(-1, (between[name].shape[0], -1))
            turned = torch.einsum("...hs,hst->...ht", queries, between[name]).flatten(-2)
            return torch.cat([turned, output[..., width:]], -1)

        get_linear(model, site).register_forward_hook(turn)
    for image in data:
        logits = model(image[None])
        loss = nn.functional.cross_entropy(logits, sample_labels(logits, image[None], 0))
        for name, slope in zip(between, torch.autograd.grad(loss, list(between.values())), strict=True):
            truth[name][0] += (slope @ slope.mT).double()
            truth[name][1] += (slope.mT @ slope).double()
    moments = calibrate(tiny(kind), sites, {"head_fisher"}, data.split(4))
    for site in sites:
        for name, total in zip(("head_fisher_query", "head_fisher_key"), truth[site.name], strict=True):
            own = moments[site.name].sums[name]
            torch.testing.assert_close(own, total, rtol=1e-3, atol=1e-3 * float(total.abs().max()), msg=name)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny()
    model.blocks[0].requires_grad_(False)
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    calibrate(model, find_sites(model), EVERYTHING, [images(3)])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_sums_and_counts_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sites = images(13), find_sites(tiny())
    found = beside_another(monkeypatch, lambda rank: calibrate(tiny(), sites, EVERYTHING, data[rank::2].split(3)))
    whole = calibrate(tiny(), sites, EVERYTHING, [data])
    for site in sites:
        assert (found[site.name].images, found[site.name].tokens) == (13, 13 * 17)
        assert_same(found[site.name], whole[site.name])


def test_statistics_leave_no_graph_behind() -> None:
    """A hook that held its own output would keep every batch's graph in memory."""
    model, alive = tiny(), []
    model.blocks[0].attn.qkv.register_forward_hook(lambda m, x, y: alive.append(weakref.ref(y)))
    sites = [linear for site in modules_of(model) for linear in site.linears]
    needs = {site.name: {"head_fisher"} if site.heads else {"gradient_second"} for site in sites}
    alive.clear()  # finding the sites calls each layer once, to see what its hooks do
    gc.disable()
    try:
        calibrate(model, sites, needs, images(8).split(2))
        assert len(alive) == 4
        assert all(ref() is None for ref in alive)
    finally:
        gc.enable()


def test_only_what_is_needed_is_collected() -> None:
    model = tiny()
    sites = find_sites(model)
    moments = calibrate(model, sites, {"second"}, [images(3)])
    for site in sites:
        expected = "input_second" if site.in_features <= site.out_features else "output_second"
        assert set(moments[site.name].sums) == {"input_sum", expected}
    fc2 = next(site for site in sites if site.name.endswith("fc2"))
    assert resolve({"second", "input_second"}, fc2) == {"input_second"}
    with pytest.raises(ValueError, match="thrid"):
        resolve({"thrid"}, fc2)


class Shared(nn.Module):
    """Queries, keys and values of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({n: nn.Linear(64, 64) for n in "qkv"})])

    def forward(self, x: Tensor) -> Tensor:
        block = self.blocks[0]
        return (block["q"](x) + block["k"](x) + block["v"](x)).mean((1, 2))


def test_an_input_shared_by_layers_is_accumulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    original = torch.Tensor.__matmul__

    def counting(a: Tensor, b: Tensor) -> Tensor:
        products.append((a.shape, b.shape))
        return original(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counting)
    model = Shared()
    moments = calibrate(model, find_sites(model), {"second"}, [torch.randn(2, 3, 5, 64)])
    assert len(products) == 1
    q, k = moments["blocks.0.q"], moments["blocks.0.k"]
    assert torch.equal(q.sums["input_second"], k.sums["input_second"])


def test_signs_have_the_fisher_information() -> None:
    """``E[c c^T] = diag(p) - p p^T`` at the logits, whatever the batch and the order."""
    p = torch.tensor([0.9, 0.07, 0.03])
    data, logits = images(4000), p.log().repeat(4000, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(probe_signs(logits, data, 0), logits)
    truth = p.diag() - torch.outer(p, p)
    torch.testing.assert_close(slopes.T @ slopes / 4000, truth, atol=0.01, rtol=0)
    (backwards,) = torch.autograd.grad(probe_signs(logits, data.flip(0), 0), logits)
    torch.testing.assert_close(backwards.flip(0), slopes)
    (other,) = torch.autograd.grad(probe_signs(logits, data, 1), logits)
    assert not torch.allclose(other, slopes)


def test_labels_do_not_depend_on_batch_or_order() -> None:
    data, logits = images(50), torch.randn(50, 10, generator=torch.Generator().manual_seed(3))
    labels = sample_labels(logits, data, 7)
    backwards = sample_labels(logits.flip(0), data.flip(0), 7).flip(0)
    single = torch.cat([sample_labels(logits[i : i + 1], data[i : i + 1], 7) for i in range(50)])
    assert torch.equal(labels, backwards)
    assert torch.equal(labels, single)
    assert not torch.equal(labels, sample_labels(logits, data, 8))


def test_labels_follow_the_models_prediction() -> None:
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    data = images(4000)
    labels = sample_labels(probabilities.log().expand(4000, 3), data, 0)
    shares = torch.bincount(labels, minlength=3) / 4000
    torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)


def test_the_name_of_a_file_follows_all_that_its_statistics_depend_on() -> None:
    model, sites, needs = tiny(), ["a", "b"], ["second", "input_abs"]
    key = cache.moments_key(model, "images", sites, needs, 3)
    assert cache.moments_key(tiny(), "images", sites[::-1], needs[::-1], 3) == key
    changed = tiny()
    changed.blocks[1].mlp.fc2.bias.data[0] += 1e-3
    others = [
        cache.moments_key(changed, "images", sites, needs, 3),
        cache.moments_key(tiny(seed=1), "images", sites, needs, 3),
        cache.moments_key(tiny().double(), "images", sites, needs, 3),
        cache.moments_key(model, "other images", sites, needs, 3),
        cache.moments_key(model, "images", ["a"], needs, 3),
        cache.moments_key(model, "images", sites, ["second"], 3),
        cache.moments_key(model, "images", sites, needs, 4),
    ]
    assert len({key, *others}) == 1 + len(others)


def test_statistics_that_cannot_be_cached_are_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path))
    found = {"layer": Moments(1, 2, {})}
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.warns(UserWarning, match="not cached.*No space left"):
        assert cache.cached_moments("key", lambda: found) is found
    assert list((tmp_path / "moments").iterdir()) == []
