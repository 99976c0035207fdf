"""What is summed of a layer: only what is needed, once, and without keeping a graph."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.stages.calibrate.observe import resolve
from lowrank_vit.stages.calibrate.stream import calibrate
from tests.support.models import images, modules_of, tiny


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
