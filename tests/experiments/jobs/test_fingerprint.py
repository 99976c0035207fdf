"""The fingerprint of a job: what it covers is what runs, and only what is behind a job changes it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from experiments.jobs.fingerprint import NEVER, files_behind, fingerprint, present
from experiments.jobs.job import Job
from experiments.jobs.results import is_stale
from experiments.jobs.run import run_job
from experiments.jobs.source import PACKAGES, ROOT, Source
from experiments.jobs.task import Task
from experiments.tables.catalogue import tables
from lowrank_vit import RECIPES, Hardware

FIELDS = (True, "digits", "1297+500")


def job(recipe: str | None, model: str = "digits_deit_small", **fields: Any) -> Job:
    return Job(model, *FIELDS, recipe, 0.4, 0, **{"epochs": 0, **fields})


JOBS = {
    "dense": job(None),
    **{recipe: job(recipe) for recipe in RECIPES},
    "paper, closed form": job("paper", changes={"solver": "closed_form"}),
    "sparse Z": job("paper", changes={"compensation": "unstructured_sparse"}),
    "swin": job("best", "digits_swin_base"),
    "real": replace(job("best", "deit_tiny_patch16_224.fb_in1k"), standin=False, data="imagefolder:samples"),
    "tuned": job("svd", epochs=20),
    "distilled": job("best", distill_epochs=9),
    "8 bits": job("svd", bits=8),
    "3 bits": job("svd", bits=3, quantizer="gptq"),
    "energy": job(None, measure="energy"),
    "loss": job(None, measure="loss"),
    "compensation": job("paper", measure="compensation"),
}
WHOLE = {"best", "swin", "real", "distilled", "loss"}
ALL = {*JOBS}
SENSED = {name for name, recipe in RECIPES.items() if recipe.sense is not None}
GATED = {name for name, recipe in RECIPES.items() if recipe.search is not None}
PAPER = {"paper", "paper, closed form", "sparse Z"}


def found(source: Source | None = None) -> dict[str, str]:
    return {name: fingerprint(each, source) for name, each in JOBS.items()}


MARK = ("import annotations", "import annotations\nX = 1")
MINIBATCH = {"paper", "paper_charitable", "sparse Z", "compensation"}
PLANTED = {  # file: what is replaced by what in it, and whose fingerprints change
    "lowrank_vit/stages/decompose/linear/two_sided.py": (
        ("damping: float = ", "damping: float = 1 + "),
        {"loss_aware", *WHOLE},  # which fall back to it
    ),
    "lowrank_vit/stages/decompose/attention/heads.py": (
        MARK,
        {*WHOLE, "comcat0", *GATED, "corp"},
    ),  # which build upon it
    "lowrank_vit/stages/allocate/paper.py": (MARK, {*PAPER, "paper_charitable", "compensation"}),
    "lowrank_vit/stages/compensate/kinds/unstructured.py": (MARK, {"sparse Z"}),
    "lowrank_vit/stages/compensate/minibatch.py": (MARK, MINIBATCH),
    "lowrank_vit/stages/correct/measured_losses.py": (("LEAST = 1e-12", "LEAST = 1e-13"), {*WHOLE, *SENSED}),
    "lowrank_vit/stages/correct/measured_curves.py": (MARK, SENSED),
    "lowrank_vit/stages/calibrate/statistics/gate_fisher.py": (MARK, {"ssp", "vtp-taylor"}),
    "lowrank_vit/stages/calibrate/statistics/head_fisher.py": (MARK, WHOLE),
    "lowrank_vit/stages/calibrate/statistics/representative.py": (MARK, {*PAPER, "energy", "compensation"}),
    "lowrank_vit/stages/search/gates.py": (MARK, GATED),
    "lowrank_vit/stages/training/finetune.py": (MARK, {"tuned"}),
    "lowrank_vit/stages/training/distill.py": (MARK, {"distilled"}),
    "lowrank_vit/stages/quantize/nearest.py": (MARK, {"8 bits", "3 bits"}),
    "lowrank_vit/stages/quantize/gptq.py": (MARK, {"3 bits"}),
    "lowrank_vit/stages/quantize/inputs.py": (MARK, {"3 bits"}),
    "lowrank_vit/architectures/swin.py": (MARK, {"swin"}),
    "lowrank_vit/data/folders.py": (MARK, {"real"}),
    "lowrank_vit/models/standin_training.py": (MARK, ALL - {"real"}),
    "lowrank_vit/pipeline/analysis.py": (MARK, ALL - {"dense", "energy", "compensation"}),
    "lowrank_vit/stages/evaluate/accuracy.py": (MARK, ALL),
    "experiments/measures/energy.py": (("POINTS = 96", "POINTS = 97"), {"energy"}),
    "lowrank_vit/cli/verbs/compress.py": (MARK, set()),
    "lowrank_vit/storage/card.py": (MARK, set()),
    "lowrank_vit/stages/export/formats.py": (MARK, set()),
    "experiments/tracking/runs.py": (MARK, set()),
    "experiments/report/rows.py": (MARK, set()),
}


@pytest.mark.parametrize("file", PLANTED)
def test_a_change_makes_stale_exactly_what_it_is_behind(file: str, tmp_path: Path) -> None:
    before, ((old, new), stale) = found(), PLANTED[file]
    text = (ROOT / file).read_text()
    assert old in text
    (tmp_path / "changed.py").write_text(text.replace(old, new, 1))
    changed = Source()
    changed._paths[file] = tmp_path / "changed.py"
    changed._files = {name: known for name, known in present()._files.items() if name != file}
    after = found(changed)
    assert {name for name in JOBS if after[name] != before[name]} == stale


def test_words_and_new_members_change_nothing(tmp_path: Path) -> None:
    before, copy = found(), tmp_path
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "published"))
    for path in copy.rglob("*.py"):
        text = path.read_text().replace('"""', '"""Other words. ', 1)
        path.write_text(f"# A remark.\n{text}\n\n# Another one.\n")
    (copy / "lowrank_vit" / "stages" / "decompose" / "linear" / "new.py").write_text(
        '@X.register("new")\nclass New: ...\n'
    )
    (copy / "lowrank_vit" / "architectures" / "new.py").write_text('@FAMILIES.register("new")\nclass New: ...\n')
    assert found(Source(copy)) == before


def test_a_default_of_a_hyperparameter_is_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    before = found()
    monkeypatch.setitem(RECIPES, "best", RECIPES["best"].but(**{"measured.trust": 0.25}))
    after = found()
    assert {name for name in JOBS if after[name] != before[name]} == WHOLE
    monkeypatch.setitem(RECIPES, "best", replace(RECIPES["best"].but(**{"measured.trust": 0.5}), about="other words"))
    assert found() == before


def test_what_is_no_longer_known_is_stale() -> None:
    own = JOBS["exact"]
    made = {"job": own.as_json(), "fingerprint": fingerprint(own)}
    assert not is_stale(made)
    assert not is_stale(made | {"job": replace(own, seed=5).as_json()})
    assert is_stale({"job": own.as_json(), "provenance": {"source": "0123"}})
    assert is_stale(made | {"job": own.as_json() | {"recipe": "forgotten"}})
    assert is_stale(made | {"job": own.as_json() | {"changes": {"decomposition.forgotten": 1}}})
    assert is_stale(made | {"job": own.as_json() | {"forgotten": 1}})


def test_every_table_has_fingerprints() -> None:
    rows = [row for table in tables().values() for row in table.runnable if row.standin]
    assert len(rows) > 300
    found = set()
    for row in rows:
        fields = {
            "changes": row.changes,
            "bits": row.bits,
            "measure": row.measure,
            "distill_epochs": row.distill_epochs,
        }
        found.add(fingerprint(job(row.recipe, row.standin or "", **fields)))
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in found)
    assert len(found) > 100


def executed(work: Callable[[], Any]) -> set[str]:
    """Do it; returns the files of both packages of which a function ran."""
    names: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            names.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return {Path(name).relative_to(ROOT).as_posix() for name in names if Path(name).is_relative_to(ROOT)}


RUNNING = ("experiments/jobs/run.py", "experiments/jobs/description.py", "lowrank_vit/models/__init__.py")
ASKED = {  # other families than the models', which are asked whether they take them
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "lowrank_vit" / "architectures").glob("*.py")
    if "@FAMILIES.register(" in path.read_text() and path.stem != "vit"
}


@pytest.mark.parametrize("name", ["best", "paper, closed form", "energy", "8 bits"])
def test_what_runs_is_covered(name: str, tmp_path: Path) -> None:
    """A first run imports everything, so that of the second one only the work is seen."""
    own = replace(JOBS[name], limit=32, calibration_samples=32, held_out_samples=16)
    tasks = [
        Task(own, "x", "X", "table2", tmp_path / place, "digits", hardware=Hardware(accelerator="cpu"), wandb=False)
        for place in ("first", "second")
    ]
    run_job(tasks[0], print)
    ran = {file for file in executed(lambda: run_job(tasks[1], print)) if file.startswith(PACKAGES)}
    assert len(ran) > 30
    assert {file for file in ran - ASKED if not file.startswith((*NEVER, *RUNNING))} <= files_behind(own, present())
