"""Labels and signs from which gradients start follow the prediction; the cache follows what statistics depend on."""

import os
from pathlib import Path

import pytest
import torch

from lowrank_vit.objectives.classification import probe_signs, sample_labels
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.calibrate import cache
from tests.support.disks import full_disk
from tests.support.models import images, tiny


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
