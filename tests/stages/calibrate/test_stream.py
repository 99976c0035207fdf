"""The streaming statistics against their definitions on inputs and gradients kept by the test itself."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.objectives.classification import sample_labels
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite, Site
from lowrank_vit.stages.calibrate.statistics import STATISTICS
from lowrank_vit.stages.calibrate.stream import calibrate
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


def _worker(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    data = images(13)
    model = tiny()
    moments = calibrate(model, find_sites(model), EVERYTHING, data[rank::2].split(3))
    torch.save({name: (own.images, own.tokens, dict(own.sums)) for name, own in moments.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, free_port: int) -> None:
    mp.spawn(_worker, (free_port, str(tmp_path)), nprocs=2)
    model = tiny()
    sites = find_sites(model)
    whole = calibrate(model, sites, EVERYTHING, images(13).split(13))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for site in sites:
            assert_same(Moments(*found[site.name]), whole[site.name])
