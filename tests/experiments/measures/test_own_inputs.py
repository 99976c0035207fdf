"""Output layers that also read what their module is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.measures.own_inputs import widen
from lowrank_vit import compress, get_recipe
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import SmallMlp
from lowrank_vit.modules.surgery import output_linear
from tests.experiments.support.untrained import dense, job_for, run
from tests.support.models import images, outputs, tiny

BEST = get_recipe("best").but(refit=False, measured=0)
KINDS: dict[type[nn.Module], tuple[str, str]] = {LowRankAttention: ("attn", "proj"), SmallMlp: ("mlp", "fc2")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_layer_reads_its_modules_input_beside_its_own(kind: type[nn.Module]) -> None:
    data = images(24, "vit").double()
    small, _ = compress(tiny("vit").double(), data.split(12), BEST, 0.5)
    before = outputs(small, data)
    block, (name, layer) = small.blocks[1], KINDS[kind]  # type: ignore[index]
    module, x = block.get_submodule(name), torch.randn(3, 17, 16).double()
    alone = outputs(module, x)
    assert widen(small, kind) == 2 * 16 * 16  # blocks, and the width of the stream
    torch.testing.assert_close(outputs(small, data), before, rtol=1e-12, atol=1e-12)  # so far it ignores it
    added = torch.randn(16, 16).double()
    linear = output_linear(module.get_submodule(layer))
    linear.weight.data[:, -16:] = added.T
    torch.testing.assert_close(outputs(module, x), alone + x @ added)


@pytest.mark.parametrize("measure", ["own_inputs_of_attention", "own_inputs_of_mlps"])
def test_the_measure_refits_and_compares_on_held_out_images(measure: str) -> None:
    model = dense()
    job = replace(job_for(measure), recipe="best", reduction=0.5)
    found = run(measure, model, job)
    width, depth = model.embed_dim, len(model.blocks)  # type: ignore[arg-type]
    assert found["added"] == depth * width**2  # type: ignore[operator]
    assert found["images"] == 32
    assert 0 < found["kl"] != run("divergence", model, replace(job, measure="divergence"))["kl"]
