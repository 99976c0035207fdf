"""Selectors that learn: what is drawn and trained, resumed to the same bytes, dropped as it was masked, kept in files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress, fewer_tokens, get_recipe
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.modules.token_block import SelectingBlock
from lowrank_vit.stages.tokens.train_selectors import SelectorTraining, drawn, see
from tests.support.finetuning import TinyData
from tests.support.hardware import on_cpu
from tests.support.models import images, outputs, same, tiny, weights
from tests.support.power_cuts import PowerCutError, interrupt

IMAGES = images(40)
ALONE, FULL = "spvit-kong-gates", "spvit-kong"
BEST = get_recipe("best").but(refit=False, measured=0)


def short(rule: str = ALONE, model: nn.Module | None = None, keep: float = 0.5, **training: Any) -> nn.Module:
    """Selectors after few steps."""
    settings = on_cpu(**{"epochs": 2, **({"batch_size": 16} if rule == ALONE else {}), **training})
    learn_on = [IMAGES] if rule == ALONE else TinyData(noise=0.0)
    return fewer_tokens(model or tiny(), rule, keep=keep, at=(0.0, 0.5), learn_on=learn_on, training=settings)


def blocks_of(model: nn.Module) -> list[SelectingBlock]:
    return [module for module in model.modules() if isinstance(module, SelectingBlock)]


def best_of(model: nn.Module) -> Any:
    """The choice that the blocks make once they drop tokens."""
    counts = [block.config["count"] for block in blocks_of(model)]

    def choose(scores: Tensor, before: Tensor, turn: int) -> Tensor:
        order = scores[..., 0].masked_fill(before[..., 0] == 0, -1.0).argsort(-1, descending=True)
        return torch.zeros_like(before).scatter(1, order[:, : counts[turn], None], 1.0)

    return choose


@pytest.mark.parametrize("smaller", [False, True])
def test_tokens_are_dropped_as_they_were_masked(smaller: bool) -> None:
    start, data = tiny().double(), IMAGES.double()
    start = compress(start, data.split(20), BEST, 0.3)[0] if smaller else start
    training = on_cpu(epochs=1, precision="64-true")
    small = fewer_tokens(start, ALONE, keep=0.6, at=(0.0, 0.5), learn_on=[data], training=training)
    assert [block.config["count"] for block in blocks_of(small)] == [10, 6]  # of 16: 9.6 and 5.76
    seen = see(small, data, best_of(small))
    torch.testing.assert_close(outputs(small, data), seen.logits.detach(), rtol=1e-6, atol=1e-6)
    assert seen.tokens.shape == (40, 16, 16)
    assert [int(kept.sum()) for kept in seen.kept] == [400, 240]


def test_multiply_accumulates_are_those_of_fewer_tokens_and_of_selectors() -> None:
    model = tiny()
    size = input_size(model)
    assert size is not None
    (block,) = blocks_of(small := fewer_tokens(model, ALONE, keep=0.5, learn_on=[IMAGES], training=on_cpu(epochs=1)))
    assert block.config["count"] == 8
    # width 16, hidden 64: weights, and what attention does with 17 tokens, then 1 + 8 + 1
    per_token = 16 * (3 * 16 + 16 + 2 * 64)
    selector = 16 * 2 * (8 * 8 + 8 * 4 + 4 * 2 + 2 * 2) + 16 * (2 * 1 + 1 * 2)
    saved = (17 - 10) * per_token + 2 * 16 * (17**2 - 10**2)
    package = 16 * 16  # of 16 patches
    assert multiply_accumulates(model, size) - multiply_accumulates(small, size) == saved - selector - package
    added = sum(each.numel() for each in block.selector.parameters())
    assert parameter_count(small) == parameter_count(model) + added


def test_what_is_drawn_is_drawn_by_its_probability_and_has_a_slope() -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.2, 0.5, 0.9]).repeat(20_000, 1)[..., None]
    scores = torch.cat([share, 1 - share], -1).requires_grad_()
    kept = drawn(scores, torch.rand(scores.shape, generator=generator))
    assert set(kept.detach().unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(kept.mean(0)[:, 0].detach(), torch.tensor([0.2, 0.5, 0.9]), rtol=0, atol=0.01)
    kept.sum().backward()
    assert (scores.grad[..., 0] >= 0).all()
    assert (scores.grad[..., 0] > 0).any()


@pytest.mark.slow
def test_the_full_form_trains_the_weights_a_hundred_times_slower() -> None:
    """The first step of Adam moves every parameter that has a slope by its own learning rate."""
    model = tiny()
    small = short(FULL, model, epochs=1, lr=1e-3)
    moved = (small.head.weight - model.head.weight).abs().max()
    assert 0 < moved < 3 * 1e-5 * 1.01  # three steps of a batch of 16 in 48 images
    assert same(model, weights(tiny()))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [ALONE, FULL])
def test_an_interrupted_run_ends_with_the_same_bytes(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = short(rule, epochs=3)
    with monkeypatch.context() as cut:
        interrupt(cut, SelectorTraining, 2)
        with pytest.raises(PowerCutError):
            short(rule, epochs=3, checkpoint_dir=tmp_path)
    assert same(short(rule, epochs=3, checkpoint_dir=tmp_path), weights(undisturbed))
    assert not same(short(rule, epochs=3, seed=1), weights(undisturbed))


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    one, two = (
        short(FULL, tiny().double(), precision="64-true", **more)
        for more in ({}, {"devices": 2, "checkpoint_dir": tmp_path})
    )
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-8, atol=1e-8)
