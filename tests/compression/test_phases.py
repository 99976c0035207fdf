"""Several processes do what one does, to rounding, each its share; one that dies ends the others with a line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import load, save
from lowrank_vit.compression.compress import compress
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.compression.resume import identity
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.processes import is_first, rank_and_world
from lowrank_vit.stages.correct.measured_losses import Replay
from lowrank_vit.storage.folder import load_report
from tests.support.models import ARGUMENTS, images, same, tiny

RECIPES = {
    "exact": get_recipe("exact"),
    "paper": get_recipe("paper").but(steps=5),
    "moments": get_recipe("paper").but(solver="moments", steps=5),
    "closed": get_recipe("paper").but(solver="closed_form"),
    "best": get_recipe("best"),
}


def run_all(folder: Path) -> None:
    """Every recipe on this process's share of 37 images; the first process saves the models."""
    rank, world = rank_and_world()
    if world > 1:  # not in the tests' own process: MKL then adds up in another order, for good
        torch.set_num_threads(1)
    seen, unseen = (Images(images(count, seed=seed)[rank::world].split(5)) for count, seed in ((37, 1), (13, 2)))
    for name, recipe in RECIPES.items():
        small, report = compress(tiny().double(), doubled(seen), recipe, 0.4, held_out=doubled(unseen), seed=3)
        if is_first():
            save(small, folder / name, report, model_args=ARGUMENTS["vit"])


def doubled(share: Images) -> Images:
    # in float64 sums in another order differ by so little that no choice of ranks changes
    return Images([batch.double() for batch in share.batches])  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_compression_on_several_processes_is_that_of_one(tmp_path: Path) -> None:
    run_all(tmp_path / "alone")
    launch(run_all, tmp_path / "together", devices=3, accelerator="cpu")
    for name in RECIPES:
        # not the weights: the basis of a head's directions may turn, and the model is the same
        one, other = (load(tmp_path / place / name).eval() for place in ("alone", "together"))
        with torch.no_grad():
            expected, found = (model(images(20, seed=4).double()) for model in (one, other))
        assert (found - expected).norm() < 1e-5 * expected.norm(), name
        reports = [load_report(tmp_path / place / name) for place in ("alone", "together")]
        for layer, other_layer in zip(reports[0]["layers"], reports[1]["layers"], strict=True):
            assert other_layer["rank"] == layer["rank"]
            for error in ("relative_error", "relative_error_held_out"):
                assert other_layer[error] == pytest.approx(layer[error], rel=1e-3, abs=1e-7), f"{name}: {layer['name']}"
    kl = [report["refit"]["kl_held_out"] for report in reports]
    assert kl[1] == pytest.approx(kl[0], rel=1e-3)
    assert reports[1]["refit"]["ridges"] == reports[0]["refit"]["ridges"]


def test_an_identity_follows_all_that_the_phases_depend_on() -> None:
    def moments(count: int = 4, factor: float = 1.0, name: str = "input_sum") -> dict[str, Moments]:
        return {"layer": Moments(count, 8, {name: factor * torch.arange(3.0).double(), "input_abs": torch.ones(3)})}

    own = identity(tiny(), moments(), {"field": 1}, 3)
    assert identity(tiny(), moments(), {"field": 1}, 3) == own
    others = [
        identity(tiny(seed=1), moments(), {"field": 1}, 3),
        identity(tiny(), moments(count=5), {"field": 1}, 3),
        identity(tiny(), moments(factor=1 + 1e-12), {"field": 1}, 3),
        identity(tiny(), moments(name="output_sum"), {"field": 1}, 3),
        identity(tiny(), {"other": moments()["layer"]}, {"field": 1}, 3),
        identity(tiny(), moments(), {"field": 2}, 3),
        identity(tiny(), moments(), {"field": 1}, 4),
    ]
    assert len({own, *others}) == 1 + len(others)


def test_phases_of_other_images_are_not_taken(tmp_path: Path) -> None:
    def run(seed: int, folder: Path | None) -> nn.Module:
        return compress(tiny(), [images(16, seed=seed)], "exact", 0.4, checkpoint_dir=folder)[0]

    run(1, tmp_path)
    kept, alone = run(2, tmp_path), run(2, None)
    assert same(kept, alone)
    assert not same(kept, run(1, None))


def test_measured_losses_are_kept_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped at the third unit of six: the first two are not measured again, and the model is the same."""
    measured, own = list[str](), Replay.divergence

    def divergence(replay: Replay, name: str, module: nn.Module) -> float:
        if name == "blocks.1.attn" and "blocks.1.attn" not in measured:
            measured.append(name)
            raise KeyboardInterrupt
        measured.append(name)
        return own(replay, name, module)

    def run(folder: Path | None) -> nn.Module:
        return compress(tiny(), [images(16)], "best", 0.4, checkpoint_dir=folder, progress=True)[0]

    alone = run(None)
    monkeypatch.setattr(Replay, "divergence", divergence)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before, _ = set(measured) - {"blocks.1.attn"}, capsys.readouterr()
    measured.append("again")
    assert same(run(tmp_path), alone)
    assert before
    assert not before & set(measured[measured.index("again") :])
    told = f"resuming {tmp_path}: statistics and factors are there, and the losses of {len(before)} units"
    assert told in capsys.readouterr().err.replace("\n", "")
