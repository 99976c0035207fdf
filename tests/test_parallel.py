"""Several processes do what one does, to rounding, each its share; one that dies ends the others with a line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError, load, phases, save
from lowrank_vit.files import write_json
from lowrank_vit.launch import launch, processes_asked_for
from lowrank_vit.parallel import agreed, gathered, is_first, layout, rank_and_world
from lowrank_vit.phases import Phases, from_bytes, shared, split, to_bytes
from lowrank_vit.pipeline import compress
from lowrank_vit.recipes import Recipe, get_recipe
from lowrank_vit.records import Factors
from lowrank_vit.steps import Images
from tests.models import VIT, images, tiny

CPU = torch.device("cpu")
RECIPES = {
    "exact": get_recipe("exact"),
    "paper": get_recipe("paper").but(steps=5),
    "moments": get_recipe("paper").but(solver="moments", steps=5),
    "closed": get_recipe("paper").but(solver="closed_form"),
    "best": get_recipe("best"),
}


def run_all(folder: Path) -> None:
    """Every recipe on this process's share of 37 images; the first process saves the models."""
    torch.set_num_threads(1)
    rank, world = rank_and_world()
    seen, unseen = (Images(images(count, seed=seed)[rank::world].split(5)) for count, seed in ((37, 1), (13, 2)))
    for name, recipe in RECIPES.items():
        small, report = compress(tiny().double(), doubled(seen), recipe, 0.4, held_out=doubled(unseen), seed=3)
        if is_first():
            save(small, folder / name, report, model_args={k: v for k, v in VIT.items() if k != "num_classes"})


def doubled(share: Images) -> Images:
    # in float64 sums in another order differ by so little that no choice of ranks changes
    return Images([batch.double() for batch in share.batches])  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_a_compression_on_several_processes_is_that_of_one(world: int, tmp_path: Path) -> None:
    run_all(tmp_path / "alone")
    launch(run_all, tmp_path / "together", devices=world, accelerator="cpu")
    for name in RECIPES:
        # not the weights: the basis of a head's directions may turn, and the model is the same
        one, other = (load(tmp_path / place / name).eval() for place in ("alone", "together"))
        with torch.no_grad():
            expected, found = (model(images(20, seed=4).double()) for model in (one, other))
        assert (found - expected).norm() < 1e-5 * expected.norm(), name
        reports = [load_report(tmp_path / place / name) for place in ("alone", "together")]
        for layer, same in zip(reports[0]["layers"], reports[1]["layers"], strict=True):
            assert same["rank"] == layer["rank"]
            for error in ("relative_error", "relative_error_held_out"):
                assert same[error] == pytest.approx(layer[error], rel=1e-3, abs=1e-7), f"{name}: {layer['name']}"
    kl = [report["refit"]["kl_held_out"] for report in reports]
    assert kl[1] == pytest.approx(kl[0], rel=1e-3)
    assert reports[1]["refit"]["ridges"] == reports[0]["refit"]["ridges"]


def load_report(folder: Path) -> dict:
    from lowrank_vit.storage import load_report

    return load_report(folder)


def work_on(names: Sequence[str]) -> dict[str, tuple[int, torch.Tensor]]:
    if "bad" in names:
        raise InputError("layer 'bad' cannot be decomposed")
    return {name: (rank_and_world()[0], torch.full((2,), float(len(name)))) for name in names}


def talk(folder: Path) -> str:
    rank, world = rank_and_world()
    costs = {"a": 1.0, "bbbb": 5.0, "cc": 3.0, "ddd": 3.0}
    found = shared(costs, work_on, CPU)
    assert list(found) == list(costs)
    assert all(tensor.tolist() == [len(name)] * 2 for name, (_, tensor) in found.items())
    owners = {name: owner for name, (owner, _) in found.items()}
    with pytest.raises(InputError, match="layer 'bad'"):  # in every process
        shared({"a": 1.0, "bad": 2.0}, work_on, CPU)
    kept = Phases(folder, "key", CPU)
    first = kept("phase", lambda: {"by": rank})
    again = kept("phase", lambda: pytest.fail("it was kept"))
    print(f"process {rank} speaks")
    told = {"owners": owners, "agreed": agreed(rank + 7), "gathered": gathered(rank), "layout": layout()}
    return repr((told, first, again, world))


@pytest.mark.slow
def test_what_processes_tell_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = launch(talk, tmp_path, devices=2, accelerator="cpu")
    owners = {"a": 0, "bbbb": 0, "cc": 1, "ddd": 1}
    expected = {"owners": owners, "agreed": 7, "gathered": [0, 1], "layout": (2, 1)}
    assert told == repr((expected, {"by": 0}, {"by": 0}, 2))
    assert capfd.readouterr().out == "process 0 speaks\n"
    assert [path.name for path in tmp_path.iterdir()] == ["phase-key.pt"]


def die(folder: Path) -> None:
    if rank_and_world()[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)
    write_json(folder / "survived.json", {})


def refuse() -> None:
    raise InputError("the images are broken")


@pytest.mark.slow
def test_a_process_that_dies_or_refuses_ends_the_others_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"process 1 terminated with signal SIGKILL, perhaps .* is kept"):
        launch(die, tmp_path, devices=2, accelerator="cpu")
    assert not (tmp_path / "survived.json").exists()
    with pytest.raises(InputError, match=r"^the images are broken$"):
        launch(refuse, devices=2, accelerator="cpu")


def test_alone_everything_is_the_identity() -> None:
    assert launch(lambda value: value, 5) == 5
    assert (rank_and_world(), layout(), agreed(3), gathered(3)) == ((0, 1), (1, 1), 3, [3])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_disjoint_whole_and_even(world: int) -> None:
    costs = {f"layer{i}": float((i * 7919) % 13 + 1) for i in range(20)}
    shares = split(costs, world)
    assert sorted(name for own in shares for name in own) == sorted(costs)
    loads = [sum(costs[name] for name in own) for own in shares]
    assert max(loads) - min(loads) <= max(costs.values())  # else the last one given would have gone elsewhere


def test_launchers_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_asked_for(None, None) == (1, 1)
    assert processes_asked_for(3, None) == (3, 1)
    with pytest.raises(InputError, match="torchrun or srun"):
        processes_asked_for(2, 2)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert processes_asked_for(None, None) == processes_asked_for(4, 2) == (4, 2)
    with pytest.raises(InputError, match="4 processes on 2 machines were started, but 8 devices on 1"):
        processes_asked_for(8, 1)
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    for name, value in {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_JOB_NAME": "array"}.items():
        monkeypatch.setenv(name, value)
    assert processes_asked_for(None, None) == (2, 3)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell that could start six, and has not
    assert processes_asked_for(None, None) == (1, 1)


def test_nothing_but_records_comes_out_of_a_kept_phase() -> None:
    factors = Factors(torch.eye(3), torch.eye(3), torch.ones(4), cap=2)
    back = from_bytes(to_bytes({"x": factors}), CPU)["x"]
    assert (type(back), back.cap, back.u.tolist()) == (Factors, 2, torch.eye(3).tolist())
    with pytest.raises(Exception, match=r"[Ww]eights.only|[Uu]nsupported"):
        from_bytes(to_bytes({"x": Recipe}), CPU)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_compression_goes_on_where_a_phase_ended(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after each phase in turn, it ends with the same bits, and computes no phase twice."""
    data = list(images(16).split(8))

    def run(folder: Path | None) -> dict[str, torch.Tensor]:
        return compress(tiny(), data, RECIPES[name], 0.4, seed=3, checkpoint_dir=folder)[0].state_dict()

    whole, computed = run(None), []

    class StoppedError(Exception):
        """In place of a power cut."""

    def keep(path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        computed.append(path.name)
        raise StoppedError

    monkeypatch.setattr(phases, "write_bytes", keep)
    result = None
    while result is None:
        try:
            result = run(tmp_path / "state")
        except StoppedError:
            assert len(computed) <= 3
    expected = {
        "exact": ["decompose"],
        "best": ["decompose", "measure", "refit"],
        "closed": ["decompose", "compensate"],
    }
    assert [file.partition("-")[0] for file in computed] == expected.get(
        name, ["decompose", "compensate", "closed_form"]
    )
    assert whole.keys() == result.keys()
    assert all(torch.equal(whole[key], result[key]) for key in whole)
    run(tmp_path / "state")
    monkeypatch.setattr(phases, "write_bytes", lambda path, content: computed.append("again"))
    compress(tiny(seed=1), data, RECIPES[name], 0.4, seed=3, checkpoint_dir=tmp_path / "state")
    assert "again" in computed  # another model's phases are not taken for its own
