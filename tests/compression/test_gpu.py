"""What a pretended device cannot show: kernels, bfloat16, training, time, memory. ``make test-gpu``, with a CUDA device."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import (
    RECIPES,
    Hardware,
    benchmark,
    compress,
    distill,
    evaluate,
    finetune,
    for_inference,
    get_recipe,
    load,
    quantize,
    save,
)
from lowrank_vit.cli import main
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.runtimes import settings
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from tests.support.finetuning import TinyData
from tests.support.models import ARGUMENTS, KINDS, distance, images, small_vit, tiny, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = Hardware(accelerator="gpu")
DRAWN = ("search", "gradual")  # stages that draw random numbers on their device: another device draws others


def quick(name: str) -> Recipe:
    """The recipe with few steps."""
    recipe = get_recipe(name)
    recipe = recipe.but(steps=5) if recipe.kinds == ["decomposition"] else recipe
    recipe = recipe if recipe.search is None else recipe.but(**{"search.epochs": 2})
    return recipe if recipe.sense is None else recipe.but(**{"sense.images": 8, "sense.points": 3})


def place(model: nn.Module) -> str:
    return next(model.parameters()).device.type


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"wd-depth"}))
def test_every_recipe_makes_what_it_makes_on_the_cpu(name: str) -> None:
    model, data, held_out = tiny("vit"), images(24), [images(16, seed=5)]
    made = {
        device: compress(copy.deepcopy(model), data.split(8), quick(name), 0.4, held_out=held_out, device=device)[0]
        for device in ("cpu", "cuda")
    }
    assert place(made["cuda"]) == "cpu"
    counts = [parameter_count(each) for each in made.values()]
    assert max(counts) <= 0.6 * parameter_count(model)
    recipe = quick(name)
    if not any(getattr(recipe, stage, None) for stage in DRAWN):
        assert counts[0] == counts[1]
        assert distance(made["cuda"], made["cpu"], data) < 2e-2


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_on_the_gpu_is_loaded_and_counted_on_the_cpu(kind: str, tmp_path: Path) -> None:
    data = images(16, kind)
    small, report = compress(tiny(kind).cuda(), data.split(8), "heads", 0.3)
    assert place(small) == "cuda"
    save(small, tmp_path / "small", report, model_args=ARGUMENTS[kind])
    loaded = load(tmp_path / "small")
    assert place(loaded) == "cpu"
    assert distance(small.cpu(), loaded, data) == 0
    assert report["provenance"]["device"] == torch.cuda.get_device_name()


def test_trainings_on_the_gpu_lower_the_loss_and_bring_the_model_back() -> None:
    small, _ = compress(tiny("vit"), images(32).split(8), "exact", 0.5)
    before = weights(small)
    module = distill(
        small, tiny("vit"), images(40), held_out=images(20, seed=2), epochs=3, hardware=GPU, progress=False
    )
    assert not module.risen
    assert place(small) == "cpu"
    assert any(not torch.equal(value, before[name]) for name, value in small.state_dict().items())
    tuned = finetune(small, TinyData(), epochs=2, hardware=GPU, progress=False)
    assert tuned.val_top1 is not None
    assert place(small) == "cpu"


def test_accuracy_in_bfloat16_is_near_that_of_the_cpu() -> None:
    model, data, labels = tiny("vit"), images(64), torch.arange(64) % 10
    batches = list(zip(data.split(16), labels.split(16), strict=True))
    on_cpu = evaluate(model, batches, hardware=Hardware(accelerator="cpu"), progress=False)
    on_gpu = evaluate(model, batches, hardware=GPU, progress=False)
    assert on_gpu["n"] == on_cpu["n"] == 64
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("query_key", "value"), [((8, 8), (3, 8)), ((5, 6), (8, 8)), ((7, 7), (7, 7)), ((0, 8), (8, 8))]
)
def test_attention_of_any_widths(query_key: tuple[int, int], value: tuple[int, int]) -> None:
    """torch's kernels fail on keys and values that do not begin at multiples of 16 bytes."""
    torch.manual_seed(0)
    attention, x = LowRankAttention(16, query_key, value, 0.3), torch.randn(4, 17, 16)
    with torch.no_grad():
        expected, found = attention(x), attention.cuda()(x.cuda()).cpu()
        assert (found - expected).abs().max() < 1e-4
        even = for_inference(attention.cpu())
        assert (even.cuda()(x.cuda()).cpu() - expected).abs().max() < 1e-4
        halved = attention.cuda().bfloat16()(x.cuda().bfloat16()).float().cpu()
    assert (halved - expected).abs().max() < 0.05


def test_speed_and_memory_of_the_gpu() -> None:
    dense, small = small_vit(), compress(small_vit(), [torch.randn(8, 3, 32, 32)], "heads", 0.4)[0]
    chosen = settings("cuda", ["eager", "compiled"], [1, 8])
    assert {each.dtype for each in chosen} == {"bfloat16"}
    rounded = quantize(small, 4)[0]
    rows = benchmark({"dense": dense, "small": small, "rounded": rounded}, chosen, seconds=0.2)["rows"]
    assert len(rows) == 4
    assert all(row["small"]["seconds"] > 0 and row["small"]["peak_memory_bytes"] > 0 for row in rows)


def test_the_commands_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    given = ["--data", "digits", "--device", "cuda"]
    main(["compress", "--model", "digits_vit_small", *given, "--reduction", "0.5", "--out", str(small)])
    capsys.readouterr()
    main(["evaluate", str(small), *given, "--json"])
    assert json.loads(capsys.readouterr().out)["top1"] > 50
    main(["distill", str(small), *given, "--epochs", "1", "--out", str(tmp_path / "distilled")])
    main(["benchmark", str(small), "--device", "cuda", "--batches", "1", "--modes", "eager", "--seconds", "1"])
