"""Files of a given size, by ranks, by bits, by both in turn and by both at once: none is larger than asked for."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import measured
from experiments.measures import at_bytes
from experiments.tables.table4b import WAYS
from lowrank_vit import compare, quantize
from lowrank_vit.modules.counting import parameter_count, saved_bytes
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.records.images import Images
from tests.experiments.support.untrained import data_for, dense, job_for, run

pytestmark = pytest.mark.slow
ROUNDING = {"bits": at_bytes.bits, "each": at_bytes.bits_by_layer, "turn": at_bytes.in_turn, "once": at_bytes.at_once}


@pytest.mark.parametrize("measure", WAYS)
def test_a_file_is_no_larger_than_asked_for(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    size = int(1.02 * at_bytes.stored(quantize(model, 8, outside=8)[0]))
    monkeypatch.setattr(at_bytes, "IN_TURN", (8,))
    job = replace(job_for(measure), recipe="heads", reduction=1 - size / saved_bytes(model, torch.float32))
    assert at_bytes.allowed(model, job) == size
    found = run(measure, model, job)
    assert 0.9 * size < found["stored_bytes"] <= size
    crude = compare(model, quantize(model, 2, outside=2)[0], data_for(model, job).held_out_dataloader())
    assert 0 <= found["kl"] < 0.5 * crude["kl"]


def rounded(small: nn.Module) -> set[str]:
    """Name the modules of the dense model of which a weight is rounded."""
    names = {name for name, module in small.named_modules() if isinstance(module, QuantizedLinear)}
    return {name.replace(".linear", "").removesuffix(".down").removesuffix(".up") for name in names}


@pytest.mark.parametrize("way", ROUNDING)
def test_all_ways_may_round_the_same_layers(way: str) -> None:
    """At a size that asks for few bits everywhere, patch embedding and classifier are rounded in every way."""
    torch.manual_seed(0)
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 100}
    model = timm.create_model("vit_tiny_patch16_224", **shape).eval()
    size = int(1.02 * at_bytes.stored(quantize(model, 2, outside=8)[0]))
    job = replace(job_for("bytes_at_once"), recipe="heads")
    seen, unseen = (Images([torch.randn(12, 3, 32, 32)], None) for _ in range(2))
    small = ROUNDING[way](model, seen, unseen, size, job)
    assert {"patch_embed.proj", "head"} <= rounded(small)
    assert sum(name.startswith("blocks.") for name in rounded(small)) >= 4 * len(model.blocks)  # type: ignore[arg-type]


def test_the_parameters_of_a_cut_model_are_counted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = dense()
    job = replace(job_for("bytes_by_ranks"), recipe="heads", reduction=0.75)
    result = measured(job, model, data_for(model, job), "cpu", Ledger(tmp_path / "stages.json", lambda said: None))
    assert result["params"]["dense"] == parameter_count(model)
    assert result["params"]["compressed"] < 0.6 * parameter_count(model)
    assert result["measured"]["stored_bytes"] > 2 * result["params"]["compressed"]
    assert "hits" not in result["measured"]
    assert result["hits"]
