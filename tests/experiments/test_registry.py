"""Jobs, rows and tables."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm

from experiments.plan import Options, make_plan, open_images
from experiments.registry import Job, Reported, Row, Table, find, find_all, tables
from experiments.table1 import BUDGETS, SOLVERS
from lowrank_vit import InputError
from lowrank_vit.compensate import COMPENSATIONS
from lowrank_vit.digits import load_split
from lowrank_vit.models import STANDINS
from lowrank_vit.recipes import RECIPES
from lowrank_vit.sites import find_sites
from lowrank_vit.steps import budget_for

JOB = Job("digits_deit_base", True, "digits", "1297+500", "paper", 0.4, 1, changes={"steps": 5})
PRINTED = {  # copied by hand from the paper
    "deit_b/baseline": ("86.6M", 81.80),
    "deit_b/aafm": ("51.9M (-40%)", 81.28),
    "deit_b/s2vite": ("56.8M (-35%)", 82.20),
    "deit_b/svd-40": ("52.0M (-40%)", 77.30),
    "deit_b/ours-exact-60": ("34.6M (-60%)", 81.10),
    "deit_s/wdpruning": ("15.0M (-32%)", 78.60),
    "deit_s/ours-paper-50": ("11.1M (-50%)", 79.34),
    "vit_b/vtp": ("48.0M (-45%)", 80.70),
    "vit_b/svd-50": ("42.3M (-50%)", 78.50),
    "vit_b/ours-paper-40": ("52.9M (-40%)", 84.20),
    "swin_b/baseline": ("88.1M", 85.45),
    "swin_b/spvit": ("68.0M (-24%)", 83.20),
    "swin_b/ours-loss_aware-60": ("35.3M (-60%)", 83.14),
    "deit_t/ours-exact-40": (None, None),
}
every_table = pytest.mark.parametrize("table", tables().values(), ids=lambda table: table.name)


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
    )
    fields, changed = JOB.as_json(), other.as_json()
    keys = {Job.from_json({**fields, name: changed[name]}).key for name in fields}
    assert len(keys) == len(fields)
    assert JOB.key not in keys


def test_a_job_of_foreign_json_is_refused() -> None:
    with pytest.raises(InputError, match="not the description of a job"):
        Job.from_json({"model": "x", "colour": "red"})


def test_the_key_does_not_depend_on_paths(tmp_path: Path) -> None:
    table, _ = find("table2")
    keys = []
    for name in ("here", "there/deeper"):
        root = tmp_path / name
        images, weights = root / "imagenet", root / "weights"
        for wnid in ("n01440764", "n01443537"):
            for split in ("train", "validation"):
                (images / split / wnid).mkdir(parents=True)
                (images / split / wnid / "a.jpg").write_bytes(b"an image")
        weights.mkdir()
        (weights / "deit_tiny_patch16_224.safetensors").write_bytes(b"weights")
        options = Options(data=f"imagefolder:{images}", checkpoints=weights)
        plan = make_plan(table, options, open_images(options.data))
        keys.append([job.key for item in plan for job in item.jobs])
    assert keys[0] == keys[1]
    assert len(keys[0]) == 17  # DeiT-Tiny's rows, one seed


def test_tables_are_found() -> None:
    assert "table2" in tables()


@every_table
def test_rows_are_well_formed(table: Table) -> None:
    assert len(table.rows) > 3
    assert table.runnable
    ids = [row.id for row in table.rows]
    assert len(set(ids)) == len(ids)
    assert table.title
    assert "python -m experiments run" in table.about
    for row in table.rows:
        assert row.id.count("/") == 1
        if isinstance(row, Reported):
            assert row.source
            assert 0 < row.top1 < 100


@every_table
def test_rows_can_be_run(table: Table) -> None:
    for row in table.runnable:
        architecture = row.model.partition(".")[0]
        assert timm.is_model(architecture)
        assert row.model in timm.models.get_arch_pretrained_cfgs(architecture), "the tag is unknown to timm"
        assert row.standin is None or row.standin in STANDINS
        assert row.recipe is None or row.recipe in RECIPES
        assert (row.recipe is None) == (row.reduction == 0 and row.target is None)
        assert (row.target is None) == (row.standin_target is None)
        assert (row.top1_reported is None and not row.printed) == (row.source is None)


@every_table
def test_every_reduction_is_within_reach_of_its_recipe(table: Table) -> None:
    for item in make_plan(table, Options(seeds=(0,)), open_images("digits")):
        for job in item.jobs if item.row.recipe is not None else ():
            model = timm.create_model(job.model)
            assert budget_for(model, job.recipe_used(), find_sites(model), job.reduction) > 0


def test_table1_is_the_whole_product() -> None:
    table, _ = find("table1")
    product = [*itertools.product(("representative", "whitened_normalised"), COMPENSATIONS.names(), SOLVERS, BUDGETS)]
    assert len(product) == 2 * 4 * 3 * 4
    for model in ("deit_b", "deit_t"):
        rows = table.select(model)
        names = ("decomposition", "compensation", "solver", "budget")
        found = [tuple(row.changes.get(name) for name in names) for row in rows]
        assert sorted(item for item in found if item[1]) == sorted(product)
        assert sorted(item[0] for item in found if not item[1]) == ["representative", "whitened_normalised"]
        assert len({row.reduction for row in rows}) == 1  # the same number of parameters everywhere
        assert all(row.epochs == 0 for row in rows)
        assert len({row.embedded_seeds for row in rows}) == 1  # solvers are compared on the same models


def test_table4_prints_what_the_paper_prints() -> None:
    table, _ = find("table4")
    printed = {
        row.id: (row.bits, row.printed["size_reported"], row.top1_reported) for row in table.runnable if row.printed
    }
    assert printed == {
        "deit_b/dense-16": (16, 165.2, 81.80),
        "deit_b/paper-50-16": (16, 82.6, 81.35),
        "deit_b/paper-50-8": (8, 41.7, 81.15),
        "deit_b/dense-4": (4, 42.2, 80.72),
    }
    assert {row.bits for row in table.select("deit_b/paper-50-*")} == {16, 8, 6, 4}


def test_tables_share_their_jobs() -> None:
    """What table 4 rounds is what table 2 compresses, so that nothing long runs twice."""
    plans = {}
    for name, row in (("table2", "deit_b/ours-paper-50"), ("table4", "deit_b/paper-50-8")):
        plan = make_plan(find(name)[0], Options(), open_images("digits"))
        plans[name] = next(item.jobs for item in plan if item.row.id == row)
    assert [replace(job, bits=None).key for job in plans["table4"]] == [job.key for job in plans["table2"]]


def test_table3_prints_what_the_paper_prints() -> None:
    table, _ = find("table3")
    printed = [
        (row.id, row.params_printed, row.top1_reported) for row in table.runnable if row.recipe in (None, "paper")
    ]
    assert printed == [
        ("vit_l/deit_b", "86.6M", 81.8),
        ("vit_l/paper", "86.0M (-72%)", 83.1),
        ("deit_b/deit_s", "22.1M", 79.8),
        ("deit_b/paper", "21.7M (-75%)", 80.3),
        ("deit_s/deit_t", "5.0M", 72.2),
        ("deit_s/paper", "5.0M (-77%)", 74.0),
    ]


def test_table2_prints_what_the_paper_prints() -> None:
    table, _ = find("table2")
    for row in table.runnable:
        assert row.recipe is None or row.id.endswith(f"-{round(100 * row.reduction)}")
    rows = {row.id: row for row in table.rows}
    for name, printed in PRINTED.items():
        row = rows[name]
        own = (row.params_printed, row.top1_reported) if isinstance(row, Row) else (row.params, row.top1)
        assert own == printed, name


def test_table2_has_every_row_that_was_asked_for() -> None:
    table, _ = find("table2")
    for model, percent in (("deit_b", 40), ("deit_s", 40), ("vit_b", 50), ("swin_b", 40), ("deit_t", 40)):
        ids = {row.id for row in table.select(model)}
        ours = {f"{model}/ours-{name}-{off}" for name in ("paper", "exact", "loss_aware") for off in (40, 50, 60)}
        beyond = {f"{model}/best{full}-{off}" for full in ("", "-full") for off in (40, 50, 60)}
        assert ids == ours | beyond | {f"{model}/baseline", f"{model}/svd-{percent}"}
    assert sum(isinstance(row, Reported) for row in table.rows) == 10


def test_the_digits_are_as_many_as_the_plan_says() -> None:
    images = open_images("digits")
    assert (images.train, images.validation) == tuple(len(load_split(split)[1]) for split in ("train", "validation"))


def test_targets_may_be_patterns_groups_and_all() -> None:
    ((table, rows),) = find_all(["table2/deit_?/svd-40", "table2/deit_s/baseline", "table2/deit_s/svd-40"])
    assert table.name == "table2"
    assert [row.id for row in rows] == ["deit_b/svd-40", "deit_s/svd-40", "deit_t/svd-40", "deit_s/baseline"]
    everything = find_all(["all"])
    assert {table.name for table, _ in everything} == set(tables())
    assert all(rows == table.runnable for table, rows in everything)


def look_up(target: str) -> list[Row]:
    table, row = find(target)
    return table.select(row)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("tabel2", "unknown table 'tabel2': did you mean 'table2'"),
        ("table2/deit_b/ours-exat-40", "did you mean 'deit_b/ours-exact-40'"),
        ("table2/deit_b/aafm", "cannot be run"),
    ],
)
def test_unknown_names_get_a_hint(target: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        look_up(target)
