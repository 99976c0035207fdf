"""Jobs and their keys."""

import json

import pytest

from experiments.jobs.job import Job
from lowrank_vit import InputError

JOB = Job("digits_deit_base", True, "digits", "1297+500", "paper", 0.4, 1, changes={"steps": 5})


def test_a_job_survives_json() -> None:
    again = Job.from_json(json.loads(json.dumps(JOB.as_json())))
    assert again == JOB
    assert again.key == JOB.key
    assert again.recipe_used().steps == 5


def test_the_key_of_a_job_never_changes() -> None:
    assert JOB.key == "42fa5f1a1bb372bb"


def test_every_field_of_a_job_is_in_its_key() -> None:
    other = Job(
        "x",
        False,
        "hf:x",
        "1+1",
        "exact",
        0.5,
        2,
        "w@1",
        {"steps": 6},
        1,
        1e-3,
        8,
        7,
        6,
        5,
        4,
        "bf16-mixed",
        8,
        "energy",
        30,
        True,
        "gptq",
        {"logit_weight": 0.0},
        {"hard_teacher": True},
        9,
        True,
        "macs",
        {"rule": "tome", "macs": 0.6},
        True,
    )
    fields, changed = JOB.as_json(), other.as_json()
    keys = {Job.from_json({**fields, name: changed[name]}).key for name in fields}
    assert len(keys) == len(fields)
    assert JOB.key not in keys


def test_a_job_of_foreign_json_is_refused() -> None:
    with pytest.raises(InputError, match="not the description of a job"):
        Job.from_json({"model": "x", "colour": "red"})
