"""Statistics on disk: the names of their files, and what happens where they cannot be kept."""

import os
from pathlib import Path

import pytest

from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.calibrate import cache
from tests.support.disks import full_disk
from tests.support.models import tiny


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
