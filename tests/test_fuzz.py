"""Random inputs to verbs, SPECs, budgets, models' arguments and jobs: a result, or one line, and nothing is left behind.

Files of models that are changed at random are in ``storage/test_hostile_files.py``. ``--hypothesis-seed N`` begins elsewhere.
"""

import contextlib
import string
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from experiments.jobs.job import Job
from lowrank_vit import InputError, compress, load, save
from lowrank_vit.data import open_source
from lowrank_vit.models import STANDINS
from lowrank_vit.records.budgets import parse_budget, parse_budgets
from tests.support.hostile import QUICK, changed, outcome
from tests.support.models import ARGUMENTS, images, tiny

pytestmark = pytest.mark.slow
MANY = settings(QUICK, max_examples=200, derandomize=False)
MODEL = next(name for name in STANDINS if name.endswith("_tiny"))
ODD = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "0",
            "-1",
            "2.5",
            "1e308",
            "nan",
            "inf",
            str(2**70),
            "0x10",
            "\u0661",
            "☃",
            "../..",
            "/dev/null",
            "[/b]",
        ]
    ),
    st.sampled_from(["x" * 300, "x\ny", "%s", "{}", "hf-hub:x/y", "None", "-", "--", "*", "(", "~x"]),
    st.text(string.printable.strip() + "é☃", max_size=12),
)


def mixed(*parts: str) -> st.SearchStrategy[str]:
    """Some of the parts in a row, with odd texts between them."""
    return st.lists(st.one_of(st.sampled_from(parts), ODD), min_size=1, max_size=4).map("".join)


def refused_in_one_line(call: Callable[[], Any]) -> None:
    try:
        call()
    except InputError as error:
        lines = str(error).splitlines()
    else:
        return
    assert len(lines) == 1


@MANY
@given(mixed("digits", "imagefolder:", "parquet:", "arrow:", "hf:", "tar:", ":", "/", "..", "~", "#", "@"))
def test_images(text: str) -> None:
    spec = " ".join(text.splitlines())  # a message repeats what a user wrote
    refused_in_one_line(lambda: open_source(spec).split("train"))


@MANY
@given(mixed("macs", "params", "bytes", "latency", "=", "0.5", "6MiB", "12ms", ",", "1", "G", "-"))
def test_budgets(text: str) -> None:
    refused_in_one_line(lambda: parse_budgets(text))
    with contextlib.suppress(InputError):
        assert parse_budget(text).limit(1000) >= 0


@MANY
@given(st.data())
def test_jobs(data: st.DataObject) -> None:
    known = Job(MODEL, True, "digits", "1297+500", "svd", 0.4, 0, changes={"solver": "closed_form"}).as_json()
    tree = changed(known, data.draw)
    refused_in_one_line(lambda: replace(Job.from_json(tree)))


@pytest.fixture(scope="module")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Arguments that are right, by the verb."""
    folder = tmp_path_factory.mktemp("fuzz")
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL).state_dict(), folder / "weights.safetensors")
    small, report = compress(tiny("vit"), images(8).split(4), "svd", 0.3, seed=0)
    save(small, folder / "small", report, model_args=ARGUMENTS["vit"])
    seen = ["--data=digits", "--batch-size=64", "--workers=0", "--device=cpu", "--seed=0", "--calibration-samples=8"]
    model, of = [f"--model={MODEL}", f"--checkpoint={folder / 'weights.safetensors'}"], [str(folder / "small")]
    return {
        "compress": [*model, *seen, "--held-out-samples=4", "--recipe=svd", "--reduction=0.3"],
        "plan": [*model, *seen, "--recipe=svd"],
        "evaluate": [*of, *seen[:-1], "--split=validation", "--limit=8"],
        "quantize": [*of, "--bits=8", "--method=nearest"],
        "shrink": [*of, "--reduction=0.5", "--device=cpu"],
        "tokens": [*of, "--rule=tome", "--macs=0.8"],
        "inspect": of,
        "export": [*of, "--format=torch-export"],
        "list": ["recipes"],
    }


@settings(MANY, max_examples=60)
@given(st.data())
def test_verbs(verbs: dict[str, list[str]], data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(sorted(verbs)))
    arguments = list(verbs[verb])
    place = data.draw(st.integers(0, len(arguments) - 1))
    name, equals, _ = arguments[place].partition("=")
    arguments[place] = f"{name}={data.draw(ODD)}" if equals else data.draw(ODD)
    if data.draw(st.booleans()):
        arguments.append(data.draw(st.sampled_from(("--model-args", "--sites", "--img-size", "--unknown"))) + "=x")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        code, _ = outcome(
            verb, *arguments, *([f"--out={out}"] if verb not in ("plan", "evaluate", "inspect", "list") else [])
        )
        if code:
            assert not out.exists(), "something was left behind"
        elif (out / "config.json").is_file():
            load(out)
