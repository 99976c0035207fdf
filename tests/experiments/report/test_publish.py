"""What is kept in the repository: whole, fresh, and the same in the pages that show it."""

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.integers import line
from experiments.jobs.job import RESULT, Job, job_folder, read_json
from experiments.jobs.revisions import is_stale, made_by
from experiments.report.agreement import agreement
from experiments.report.origins import OLDER
from experiments.report.publish import ROOT, pages, publish
from experiments.report.render import PLACE, PUBLISHED, render_all
from experiments.report.write import write_report
from experiments.runner.plan import PLAN, Options, as_json, make_plan
from lowrank_vit import InputError, get_recipe
from tests.experiments.support.synthetic import IMAGES, OLDER_REVISIONS, PROVENANCE, TABLE, fill, result, write

TABLE_FILES = [file for file in sorted(PUBLISHED.rglob("*.json")) if file.parent.name != "benchmarks"]
OTHER = get_recipe("exact").record()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A whole run of the table for tests."""
    fill(tmp_path)
    put(tmp_path, PROVENANCE)
    write_report(tmp_path, TABLE)
    return tmp_path


def put(folder: Path, provenance: dict[str, Any], code: str = "new", epochs: int = 20) -> None:
    """Give every job of the table a result."""
    fields: dict[str, Any] = {"finetune": {"epochs": epochs} if epochs else None}
    for item in make_plan(TABLE, Options(steps=100, seeds=(0, 1)), IMAGES):
        for job in item.jobs:
            content = result(job, code, 90.0 + job.seed, provenance=provenance | {"seed": job.seed}, **fields)
            write(folder, job, content)


def make_older(path: Path) -> None:
    """Give every published row an older revision."""
    content = json.loads(path.read_text())
    content["rows"] = [row | {"revisions": OLDER_REVISIONS} for row in content["rows"]]
    path.write_text(json.dumps(content))


def test_what_is_published_can_be_traced(results: Path, tmp_path: Path) -> None:
    path = publish(results, TABLE, tmp_path / "published")
    assert path == tmp_path / "published" / "digits" / "table9.json"
    content = json.loads(path.read_text())
    assert {row["status"] for row in content["rows"]} == {"done", "reported"}
    assert content["provenance"]["commits"] == ["0123456789abcdef"]
    rows = {row["id"]: row for row in content["rows"]}
    job = Job.from_json(rows["m/ours-40"]["job"])
    assert (job.recipe, job.seed) == ("paper", 0)
    assert rows["m/ours-40"]["revisions"] == made_by(job)["revisions"]
    assert rows["m/ours-40"]["recipe"] == job.recipe_used().record()
    assert (rows["m/ours-40"]["commits"], rows["m/ours-40"]["training"]) == (["0123456789abcdef"], {"epochs": 20})
    assert (rows["m/baseline"]["recipe"], "revisions" in rows["m/other"]) == (None, False)
    assert content["commands"]["m/svd-40"].startswith("python -m experiments run table9/m/svd-40")
    assert path.with_name("table9_accuracy_vs_params.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "old"}, "is stale: run it again"),
        ({"provenance": {"git": {"commit": "0123", "dirty": True}}}, "uncommitted changes"),
        ({"provenance": {"git": None}}, "uncommitted changes"),
        ({"epochs": 0}, "m/svd-40 says 'partial-ft', but was not trained: run it with --epochs"),
    ],
)
def test_what_cannot_be_traced_is_not_published(results: Path, changes: dict[str, Any], message: str) -> None:
    put(results, PROVENANCE | changes.pop("provenance", {}), **changes)
    with pytest.raises(InputError, match=message):
        publish(results, TABLE, results / "published")
    assert not (results / "published").exists()


def one_seed(folder: Path, seed: int, top1: float, commit: str) -> None:
    """Run the table with one seed, which is then its last run."""
    options = Options(steps=100, seeds=(seed,))
    plan = make_plan(TABLE, options, IMAGES)
    (folder / TABLE.name / PLAN).write_text(json.dumps(as_json(TABLE, options, IMAGES, plan)))
    made = PROVENANCE | {"seed": seed, "git": {"commit": commit, "dirty": False}}
    fields: dict[str, Any] = {"finetune": {"epochs": 20}, "file_bytes": 2**seed}
    for job in [job for item in plan for job in item.jobs]:
        write(folder, job, result(job, "new", top1, provenance=made, **fields))


def published_row(path: Path, name: str = "m/ours-40") -> dict[str, Any]:
    return next(row for row in json.loads(path.read_text())["rows"] if row["id"] == name)


def test_a_seed_that_is_published_later_joins_the_others(results: Path, tmp_path: Path) -> None:
    """Mean and spread by hand; a seed that is run again takes its own place."""
    folder, wanted = tmp_path / "published", {"m/ours-40"}
    for seed, top1 in ((0, 90.0), (2, 94.0), (0, 91.0)):
        one_seed(results, seed, top1, f"{seed:016x}")
        path = publish(results, TABLE, folder, wanted)
    row = published_row(path)
    assert (row["seeds"], row["top1"]) == ([0, 2], 92.5)
    assert row["top1_std"] == pytest.approx(1.5 * 2**0.5)
    assert row["by_seed"]["2"]["top1"] == 94.0
    assert (row["file_bytes"], row["commits"]) == (2, [f"{0:016x}", f"{2:016x}"])
    assert " --seeds 0,2 " in json.loads(path.read_text())["commands"]["m/ours-40"] + " "


def test_only_seeds_of_the_same_job_and_code_are_joined(results: Path, tmp_path: Path) -> None:
    folder, wanted = tmp_path / "published", {"m/ours-40"}
    one_seed(results, 0, 90.0, "0" * 16)
    path = publish(results, TABLE, folder, wanted)
    text, row = path.read_text(), published_row(path)
    one_seed(results, 1, 94.0, "1" * 16)
    for changed in ({"revisions": OLDER_REVISIONS}, {"recipe": OTHER}, {"job": {**row["job"], "reduction": 0.3}}):
        content = json.loads(text)
        content["rows"] = [{**each, **changed} if each["id"] == "m/ours-40" else each for each in content["rows"]]
        path.write_text(json.dumps(content))
        assert published_row(publish(results, TABLE, folder, wanted))["seeds"] == [1]
    before = {slot: value for slot, value in row["recipe"].items() if value is not None}  # lacks slots that came later
    content = json.loads(text)
    content["rows"] = [{**each, "recipe": before} if each["id"] == "m/ours-40" else each for each in content["rows"]]
    path.write_text(json.dumps(content))
    assert len(before) < len(row["recipe"])
    assert published_row(publish(results, TABLE, folder, wanted))["seeds"] == [0, 1]


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
    assert lines[2].startswith("*Table 9 · digits stand-in, not ImageNet*; seeds 0, 1; 2 jobs")
    assert lines[4:8] == ["| Method | after FT |", "| :-- | --: |", "| Other |  |", "| Vanilla SVD + FT | 90.5 ± 0.7 |"]
    assert lines[8:] == ["<!-- end -->", "after"]
    with pytest.raises(InputError, match="nothing is published as 'digits/table8'"):
        render_all(text.replace("table9", "table8"), folder)


def test_a_line_for_each_method(results: Path, tmp_path: Path) -> None:
    """It has the accuracy at every reduction, and is marked once one of its rows is older."""
    folder = tmp_path / "published"
    path = publish(results, TABLE, folder)
    text = "<!-- published digits/table9 lines=m/svd-* -->\n<!-- end -->\n"
    rendered = render_all(text, folder)
    assert rendered == render_all(rendered, folder)
    head, _, *lines = rendered.splitlines()[1:-1]
    assert head.endswith("digits stand-in, not ImageNet*: top-1 ± deviation over the seeds; the dense model has 95.5.")
    assert lines == ["- Vanilla SVD + FT: 90.5 ± 0.7 at -40%"]
    make_older(path)
    assert render_all(text, folder).splitlines()[-2].startswith(f"- Vanilla SVD + FT {OLDER}: 90.5")
    with pytest.raises(InputError, match="has no row 'm/none-\\*' that is published"):
        render_all(text.replace("svd-", "none-"), folder)


def test_the_rows_of_a_benchmark_that_are_asked_for(tmp_path: Path) -> None:
    provenance = {"command": "python -m benchmarks.b", "device": "cpu", "git": {"commit": "0123456789"}}
    content = {"title": "B", "header": ["layer", "ms"], "rows": [["a.0", "1"], ["b.0", "2"]], "provenance": provenance}
    (tmp_path / "b.json").write_text(json.dumps(content))
    head = "*B*; `python -m benchmarks.b` on cpu, commit 0123456."
    text = "<!-- published b rows=b.* -->\n<!-- end -->\n"
    table = "\n\n| layer | ms |\n| :-- | --: |\n| b.0 | 2 |\n"
    assert render_all(text, tmp_path) == text.replace("-->\n", f"-->\n{head}{table}", 1)
    none = text.replace("b.*", "-")
    assert render_all(none, tmp_path) == none.replace("-->\n", f"-->\n{head}\n", 1)


def test_a_benchmark_prints_the_standard_error_of_its_accuracy() -> None:
    """Published cells are those that its data give."""
    content = json.loads((PUBLISHED / "benchmarks" / "integers.json").read_text())
    for cells, row in zip(content["rows"], content["data"]["rows"], strict=True):
        hits = row["top1"] / 100
        assert cells[2] == f"{row['top1']:.1f} ± {100 * (hits * (1 - hits) / row['n']) ** 0.5:.1f}"
        assert cells == line(row["file"], cells[3], row)


def test_a_number_within_a_sentence(results: Path, tmp_path: Path) -> None:
    """It is one cell without its spread, marked once its code is older."""
    folder = tmp_path / "published"
    path = publish(results, TABLE, folder)
    text = "keeps <!-- value digits/table9 m/svd-40 top1 -->?<!-- /value -->, in a sentence\n"
    assert render_all(text, folder) == text.replace("?", "90.5")
    with pytest.raises(InputError, match="value digits/table9 m/svd-40 top1 --> begins a line"):
        render_all(text.replace("keeps ", "keeps\n"), folder)
    make_older(path)
    assert render_all(text, folder) == text.replace("?", f"90.5 {OLDER}")
    with pytest.raises(InputError, match="has no row 'm/none' that is published"):
        render_all(text.replace("svd-40", "none"), folder)
    with pytest.raises(InputError, match="nothing is published as 'digits/table8'"):
        render_all(text.replace("table9", "table8"), folder)


def test_every_published_row_is_of_present_revisions_or_marked() -> None:
    """Revisions and recipes are compared here anew, row by row, with what the pages show."""
    places = [place for page in pages() for place in PLACE.finditer(page.read_text(encoding="utf-8"))]
    assert places
    for file in TABLE_FILES:
        name = file.relative_to(PUBLISHED).with_suffix("").as_posix()
        rows = json.loads(file.read_text())["rows"]
        older = {row["id"] for row in rows if row["status"] == "done" and is_stale(row)}
        for place in places:
            if place["name"] != name or "sentence=" in place["options"] or "lines=" in place["options"]:
                continue
            patterns = dict(option.split("=") for option in place["options"].split()).get("rows", "*").split(",")
            shown = [row for row in rows if any(fnmatch.fnmatchcase(row["id"], pattern) for pattern in patterns)]
            stale = [row for row in shown or rows if row["id"] in older]
            told = [line for line in place[0].splitlines() if line.startswith(f"{OLDER}: made by commit")]
            marked = [line for line in place[0].splitlines() if line.startswith("|") and OLDER in line]
            assert len(told) == bool(stale), name
            lines = {row["id"] for row in stale}
            if "across=" in place["options"]:  # a line is marked where one of its rows is older
                methods = {row["method"] for row in stale}
                lines = {(row["architecture"], row["method"]) for row in shown if row["method"] in methods}
            assert len(marked) == (len(lines) if shown else 0), name


def test_the_pages_show_what_is_published() -> None:
    texts = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in pages()}
    older = [name for name, text in texts.items() if render_all(text) != text]
    assert older == [], "python -m experiments publish"


def test_published_results_are_whole() -> None:
    assert TABLE_FILES
    for file in TABLE_FILES:
        content = json.loads(file.read_text())
        assert all(len(commit) == 40 for commit in content["provenance"]["commits"])
        assert all(row["id"] in content["commands"] for row in content["rows"] if row["status"] == "done")
        assert "/root/" not in file.read_text()


def test_what_differs_most_is_named(results: Path, tmp_path: Path) -> None:
    """By hand: top-1 of 91 against 90.5, and an error of 0.11 against 0.1."""
    publish(results, TABLE, tmp_path / "published")
    plan = make_plan(TABLE, Options(steps=100, seeds=(0, 1)), IMAGES)
    (job,) = [item.jobs[1] for item in plan if item.row.id == "m/svd-40"]
    changes = {"top1": {"dense": 96.0, "before": None, "after": 90.5}, "relative_error_held_out": 0.1}
    write(results, job, read_json(job_folder(results, job) / RESULT) | changes)
    found = agreement(results, TABLE, tmp_path / "published")
    assert found is not None
    assert (found.jobs, found.equal) == (8, 7)  # four rows, two seeds
    assert found.points == (0.5, "m/svd-40")
    assert found.share == (pytest.approx(0.01 / 0.11), "m/svd-40")
    assert found.sentence == (
        "8 jobs of this run are published, too, 7 with equal numbers; top-1 differs by at most 0.5 points (m/svd-40); "
        "other numbers by at most 9.1e-02 of their value (m/svd-40)"
    )
