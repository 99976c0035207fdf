"""What is kept in the repository: whole, fresh, and the same in the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.plan import Options, make_plan
from experiments.publish import PLACE, PUBLISHED, ROOT, publish, render_all
from experiments.report import write_report
from lowrank_vit import InputError
from tests.experiments.synthetic import IMAGES, TABLE, fill, result, write

PROVENANCE = {
    "source": "new",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"torch": "2.15.0", "timm": "1.0.0"},
    "device": "cpu (x86_64)",
    "seed": 0,
    "calibration": None,
    "command": "",
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole run of the table for tests."""
    monkeypatch.setattr("lowrank_vit.provenance.source_hash", lambda: "new")
    fill(tmp_path)
    put(tmp_path, PROVENANCE)
    write_report(tmp_path, TABLE)
    return tmp_path


def put(folder: Path, provenance: dict[str, Any]) -> None:
    """Give every job of the table a result."""
    for item in make_plan(TABLE, Options(steps=100, seeds=(0, 1)), IMAGES):
        for job in item.jobs:
            content = result(
                job, "new", 90.0 + job.seed, provenance=provenance | {"seed": job.seed}, threads=1, layers=[]
            )
            write(folder, job, content)


def test_what_is_published_can_be_traced(results: Path, tmp_path: Path) -> None:
    path = publish(results, TABLE, tmp_path / "published")
    assert path == tmp_path / "published" / "digits" / "table9.json"
    content = json.loads(path.read_text())
    assert {row["status"] for row in content["rows"]} == {"done", "reported"}
    assert content["provenance"]["commits"] == ["0123456789abcdef"]
    assert content["provenance"]["seeds"] == [0, 1]
    assert content["provenance"]["jobs"] == 8
    assert content["commands"]["m/svd-40"].startswith("python -m experiments run table9/m/svd-40")
    assert path.with_name("table9_accuracy_vs_params.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "old"}, "is stale: run it again"),
        ({"git": {"commit": "0123", "dirty": True}}, "uncommitted changes"),
        ({"git": None}, "uncommitted changes"),
    ],
)
def test_what_cannot_be_traced_is_not_published(results: Path, changes: dict[str, Any], message: str) -> None:
    put(results, PROVENANCE | changes)
    with pytest.raises(InputError, match=message):
        publish(results, TABLE, results / "published")
    assert not (results / "published").exists()


def test_a_row_that_lacks_a_seed_is_not_published(results: Path) -> None:
    job = make_plan(TABLE, Options(steps=100, seeds=(0, 1)), IMAGES)[1].jobs[1]
    (results / "jobs" / job.key / "result.json").unlink()
    with pytest.raises(InputError, match=r"m/svd-40 is not whole \(seed 1: not run yet\)"):
        publish(results, TABLE, results / "published")


def test_a_place_is_filled_with_the_rows_and_columns_it_asks_for(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    publish(results, TABLE, folder)
    mark = "<!-- published digits/table9 columns=method,top1 rows=m/svd-40,m/other -->"
    text = f"before\n{mark}\nold\n<!-- end -->\nafter\n"
    rendered = render_all(text, folder)
    assert rendered == render_all(rendered, folder)
    lines = rendered.splitlines()
    assert lines[0] == "before"
    assert lines[1] == mark
    assert lines[2].startswith("*Table 9: made up · digits stand-in, not ImageNet*; seeds 0, 1; 8 jobs")
    assert lines[4:8] == ["| Method | after FT |", "| :-- | --: |", "| Other |  |", "| Vanilla SVD + FT | 90.5 ± 0.7 |"]
    assert lines[8:] == ["<!-- end -->", "after"]
    with pytest.raises(InputError, match="nothing is published as 'digits/table8'"):
        render_all(text.replace("table9", "table8"), folder)


def test_the_readme_shows_what_is_published() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(PLACE.findall(text)) > 3
    assert render_all(text) == text, "python -m experiments publish"


def test_published_results_are_whole() -> None:
    files = sorted(PUBLISHED.rglob("*.json"))
    assert files
    for file in files:
        content = json.loads(file.read_text())
        assert all(len(commit) == 40 for commit in content["provenance"]["commits"])
        assert all(row["id"] in content["commands"] for row in content["rows"] if row["status"] == "done")
        assert "/root/" not in file.read_text()
