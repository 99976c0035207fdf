"""Jobs, their keys, and what makes their numbers: recipe and revisions, which alone make a result older."""

import json
from dataclasses import replace
from typing import Any

import pytest

from experiments.jobs.job import Job, read_json
from experiments.jobs.measure import MEASURES
from experiments.jobs.revisions import digest, is_stale, made_by
from experiments.report.render import PUBLISHED
from experiments.tables.catalogue import tables
from lowrank_vit import InputError
from lowrank_vit.compression.revisions import ENGINE
from lowrank_vit.methods.best import Interpolation
from lowrank_vit.methods.tome import TokenMerging

FIELDS = (True, "digits", "1297+500")


def job(recipe: str | None, model: str = "digits_deit_small", **fields: Any) -> Job:
    return Job(model, *FIELDS, recipe, 0.4, 0, **{"epochs": 0, **fields})


def parts(*given: Any, **fields: Any) -> set[str]:
    return set(made_by(job(*given, **fields))["revisions"])


def test_a_job_has_the_revisions_of_what_it_uses() -> None:
    dense = {"images", "evaluate", "standins", "family.vit"}
    assert parts(None) == dense
    linear = {*dense, "calibrate", "plan", "cut", "unit.decomposition", "objective.classification"}
    assert parts("svd") == {*linear, "decomposition.svd", "allocator.uniform"}
    assert parts("paper") - parts("svd") == {
        "compensate", "compensation.low_rank", "decomposition.representative", "allocator.paper",
    }  # fmt: skip
    assert parts("svd", epochs=20) - parts("svd") == {"train"}
    assert parts("best", distill_epochs=9) - parts("best") == {"train"}
    assert parts("svd", bits=8) - parts("svd") == {"quantise", "quantizer.nearest"}
    assert parts("svd", bits=3, quantizer="gptq") - parts("svd") == {"quantise", "quantizer.gptq"}
    assert parts("best", tokens={"rule": "tome", "macs": 0.5}) - parts("best") == {"tokens.tome"}
    assert parts("best", tokens={"rule": "spvit-kong", "macs": 0.5}) - parts("best") == {"train", "tokens.spvit-kong"}
    assert parts("vtp-gates") >= {"train", "gradual.importance"}
    assert parts("best", timed=True) - parts("best") == {"time"}
    assert parts("best", "digits_swin_base") ^ parts("best") == {"family.swin", "family.vit"}
    assert parts("best", "digits_vmamba_tiny") - parts("best") == {"family.vmamba", "unit.scan", "scan.leave_out"}
    real = replace(job("best", "deit_tiny_patch16_224.fb_in1k"), standin=False, data="imagefolder:samples")
    assert parts("best") - set(made_by(real)["revisions"]) == {"standins"}
    assert parts(None, measure="energy") - dense == {
        "calibrate", "measure.energy", *(f"decomposition.{name}" for name in ("svd", "representative", "whitened")),
    }  # fmt: skip
    assert {"mlp.interpolative", "measure.loss"} <= parts(None, measure="loss")
    assert "delta.lora" in parts(None, measure="customize", changes={"method": "lora"})


@pytest.mark.parametrize(
    ("method", "stale"), [(Interpolation, {"best", "loss"}), (TokenMerging, {"tokens"}), ("train", {"tuned"})]
)
def test_a_raised_revision_makes_stale_what_uses_it(
    method: Any, stale: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {
        "dense": job(None),
        "svd": job("svd"),
        "best": job("best"),
        "loss": job(None, measure="loss"),
        "tokens": job(None, tokens={"rule": "tome", "macs": 0.5}),
        "tuned": job("svd", epochs=20),
    }
    made = {name: {"job": each.as_json(), **made_by(each)} for name, each in jobs.items()}
    before = {name: digest(each) for name, each in made.items()}
    assert not any(is_stale(each) for each in made.values())
    if isinstance(method, str):
        monkeypatch.setitem(ENGINE, method, 2)
    else:
        monkeypatch.setattr(method, "revision", 2, raising=False)
    assert {name for name, each in made.items() if is_stale(each)} == stale
    assert {name for name, each in jobs.items() if digest(made_by(each)) != before[name]} == stale


def test_every_row_says_what_makes_it() -> None:
    """Those to be run, and those that are published, of which only those are older whose parts have been raised."""
    rows = [row for table in tables().values() for row in table.runnable if row.standin]
    taken = ("changes", "bits", "measure", "distill_epochs")
    found = {
        digest(made_by(job(row.recipe, row.standin or "", **{name: getattr(row, name) for name in taken})))
        for row in rows
    }
    assert (len(rows) > 300, len(found) > 100) == (True, True)
    assert {row.measure for row in rows} - {None} <= {*MEASURES.names()}
    published = [read_json(path) for path in sorted(PUBLISHED.glob("*/*.json")) if path.parent.name != "benchmarks"]
    done = [row for table in published for row in table["rows"] if row["status"] == "done"]
    assert len(done) >= 800
    raised = {"sense", "measure.bytes_in_turn", "measure.bytes_by_bits"}
    older = [row for row in done if is_stale(row)]
    assert [row["id"] for row in older if not raised & made_by(Job.from_json(row["job"]))["revisions"].keys()] == []
    assert all(version.keys() == {"torch", "timm", "numpy"} for row in done for version in row["versions"])


JOB = Job("digits_deit_base", True, "digits", "1297+500", "paper", 0.4, 1, changes={"steps": 5})


def test_a_job_survives_json() -> None:
    again = Job.from_json(json.loads(json.dumps(JOB.as_json())))
    assert again == JOB
    assert again.key == JOB.key
    assert again.recipe_used().steps == 5


def test_the_key_of_a_job_never_changes() -> None:
    assert JOB.key == "42fa5f1a1bb372bb"


def another(value: Any) -> Any:
    """Another value for a field of a job."""
    if isinstance(value, bool):
        return not value
    return {"steps": 6} if isinstance(value, dict) else f"{value} or not"


def test_every_field_of_a_job_is_in_its_key() -> None:
    fields = JOB.as_json()
    keys = {Job.from_json({**fields, name: another(value)}).key for name, value in fields.items()}
    assert len(keys | {JOB.key}) == 1 + len(fields) > 25


def test_a_job_of_foreign_json_is_refused() -> None:
    with pytest.raises(InputError, match="not the description of a job"):
        Job.from_json({"model": "x", "colour": "red"})
