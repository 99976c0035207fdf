"""Rows and tables."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import timm
import torch

from experiments.report.formats import printed_count
from experiments.runner.plan import Options, make_plan, open_images
from experiments.tables.catalogue import find, find_all, tables
from experiments.tables.rows import Reported, Row, Table
from experiments.tables.table1 import BUDGETS, SOLVERS
from experiments.tables.table2 import READINGS
from lowrank_vit import InputError, find_sites, get_recipe
from lowrank_vit.compression.budget import check_budget
from lowrank_vit.data.digits import load_split
from lowrank_vit.models import STANDINS
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.stages.compensate import COMPENSATIONS

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
        assert row.recipe is None or get_recipe(row.recipe)
        cut = row.recipe is not None or row.measure or row.tokens
        assert cut or (row.reduction == 0 and row.target is None)
        assert row.recipe is None or row.reduction or row.target
        assert (row.target is None) == (row.standin_target is None)
        assert (row.top1_reported is None and not row.printed) == (row.source is None)


@every_table
def test_every_reduction_is_within_reach_of_its_recipe(table: Table) -> None:
    """Or the row says how far its recipe reaches, which only those beyond the paper may."""
    for item in make_plan(table, Options(seeds=(0,)), open_images("digits")):
        for job in item.jobs if item.row.recipe is not None else ():
            model = timm.create_model(job.model)
            check_budget(model, job.recipe_used(), job.budget)
        if item.row.standin is None:
            continue
        if (item.row.calibration_images or 0) > 1168:  # all digits that are not held out
            assert item.jobs == ()
            assert "images to calibrate on, of which digits has 1168" in (item.reason or "")
        elif not item.jobs:
            assert item.row.source is None
            assert item.row.reduction >= 0.8 or item.row.recipe in (
                "vbp",
                "spvit-he-gates",
                "spvit-he",
            )  # of MLPs alone
            assert re.search(
                r"out of reach: on this model its recipe reaches from 0 \(not included\) to 0\.\d+$", item.reason or ""
            )


def test_table1_is_the_whole_product() -> None:
    table, _ = find("table1")
    bases = ("representative", "whitened_normalised")
    product = [*itertools.product(bases, COMPENSATIONS.names(), SOLVERS, BUDGETS, (None,))]
    assert len(product) == 2 * 4 * 3 * 4
    product += [
        ("representative", kind, "minibatch", 0.05, "sgd") for kind in COMPENSATIONS.names()
    ]  # the paper's words
    for model in ("deit_b", "deit_t"):
        rows = table.select(model)
        names = ("decomposition", "compensation", "solver", "budget", "optimizer")
        found = [tuple(row.changes.get(name) for name in names) for row in rows]
        assert sorted((item for item in found if item[1]), key=str) == sorted(product, key=str)
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
        (row.id, row.params_printed, row.top1_reported)
        for row in table.runnable
        if row.recipe in (None, "paper") and row.target_params is None and not row.reduction
    ]
    assert printed == [
        ("vit_l/deit_b", "86.6M", 81.8),
        ("vit_l/paper", "86.0M (-72%)", 83.1),
        ("deit_b/deit_s", "22.1M", 79.8),
        ("deit_b/paper", "21.7M (-75%)", 80.3),
        ("deit_s/deit_t", "5.0M", 72.2),
        ("deit_s/paper", "5.0M (-77%)", 74.0),
    ]


def test_table3_aims_at_the_printed_size_too_where_it_is_another() -> None:
    """Where the two differ by more than 1 %: the numbers of the table, the true sizes those of timm's models."""
    table, _ = find("table3")
    rows = {row.id: row for row in table.runnable}
    aims: dict[str, float] = {}
    for pair in ("vit_l", "deit_b", "deit_s"):
        row = rows[f"{pair}/paper"]
        printed = printed_count(row.params_printed)
        with torch.device("meta"):
            true = parameter_count(timm.create_model(str(row.target)))
        assert printed is not None
        assert (f"{pair}/paper-printed" in rows) == (abs(printed / true - 1) > 0.01), pair
        if f"{pair}/paper-printed" in rows:
            aims[pair] = printed / true
            assert {row.target_params for row in table.select(f"{pair}/*-printed")} == {printed}
            assert len(table.select(f"{pair}/*-printed")) == 6
    jobs = {item.row.id: item.jobs for item in make_plan(table, Options(seeds=(0,)), open_images("digits"))}
    for pair, share in aims.items():  # the stand-ins at the same share of the smaller one
        (job,), small = jobs[f"{pair}/paper-printed"], str(rows[f"{pair}/paper"].standin_target)
        dense, size = (parameter_count(timm.create_model(name)) for name in (job.model, small))
        assert dense * (1 - job.reduction) == pytest.approx(size * share)


def test_table1_prints_what_the_paper_prints_beside_its_setting() -> None:
    table, _ = find("table1")
    printed = {row.id: dict(row.printed) for row in table.runnable if row.printed}
    names = ("overhead_reported", "residual_error_reported")
    assert {name.split("-")[1]: tuple(row[name] for name in names) for name, row in printed.items()} == {
        "low_rank": ("low", 0.13),
        "diagonal": ("low", 0.27),
        "structured_sparse": ("low", 0.23),
        "unstructured_sparse": ("high", 0.11),
    }
    assert all(
        name.startswith("deit_b/representative-") and name.endswith(("-minibatch-5", "-minibatch-sgd-5"))
        for name in printed
    )


def test_table4_counts_what_it_says_of_deit_b() -> None:
    """The numbers of its description, from the model's layers."""
    with torch.device("meta"):
        model = timm.create_model("deit_base_patch16_224")
    sites = find_sites(model)
    whole, blocks = parameter_count(model), sum(site.in_features * site.out_features for site in sites)
    channels = sum(site.out_features for site in sites)
    said = find("table4")[0].about
    assert (round(blocks / 1e6, 2), round((whole - blocks) / 1e6, 2), channels) == (84.93, 1.63, 82_944)
    mib = {
        "165.2": 2 * 86.6e6, "82.6 MiB": 2 * 43.3e6, "41.3": whole / 2, "2.34": 1.5 * (whole - blocks),
        "1.56": whole - blocks, "0.24": 3 * channels, "2.6 MiB": 1.5 * (whole - blocks) + 3 * channels,
    }  # fmt: skip
    for text, count in mib.items():
        number = text.partition(" ")[0]
        assert text in said
        assert f"{count / 2**20:.{len(number.partition('.')[2])}f}" == number, text


def test_table2_says_how_each_quoted_number_was_trained() -> None:
    table, _ = find("table2")
    quoted = {row.id: row for row in table.rows if isinstance(row, Reported)}
    assert all(row.note.startswith("epochs: ") and "; teacher: " in row.note for row in quoted.values())
    protocols = {row.method: row.protocol for row in quoted.values()}
    assert protocols.pop("AAFM") == "calibration-distilled"
    assert set(protocols.values()) == {"full-ft"}  # none of them had a teacher
    assert "600, from scratch" in quoted["deit_b/s2vite"].note
    assert "54.5M if what is pruned is physically removed" in quoted["deit_b/s2vite"].note
    assert "46.2M and 81.5" in quoted["deit_b/spvit"].note


def test_table2_goes_on_where_methods_part() -> None:
    table, _ = find("table2")
    for model in ("deit_b", "swin_b"):
        rows = table.select(f"{model}/free-*")
        assert [round(100 * row.reduction) for row in rows] == [70] * 6 + [80] * 6 + [90] * 6
        assert {(row.protocol, row.epochs, row.params_printed, row.top1_reported) for row in rows} == {
            ("training-free", 0, None, None)
        }
        assert {row.embedded_seeds for row in rows} == {(0,)}


def test_table2_prints_what_the_paper_prints() -> None:
    table, _ = find("table2")
    for row in table.runnable:
        assert row.recipe is None or row.id.endswith(f"-{round(100 * row.reduction)}")
    rows = {row.id: row for row in table.rows}
    for name, printed in PRINTED.items():
        row = rows[name]
        own = (row.params_printed, row.top1_reported) if isinstance(row, Row) else (row.params, row.top1)
        assert own == printed, name


RUN_HERE = {  # other methods of Table 2
    "deit_b": ("aafm+gfm-40", "wdpruning-30", "s2vite-schedule-35", "losparse-40"),
    "deit_s": ("wdpruning-32", "s2vite-schedule-34"),
    "vit_b": ("vtp-45",),
    "swin_b": ("aafm+gfm-33",),
}


def test_table2_has_every_row_that_was_asked_for() -> None:
    assert READINGS == ("paper", "paper_literal", "paper_charitable", "exact", "exact_normalised", "loss_aware")
    table, _ = find("table2")
    for model, percent in (("deit_b", 40), ("deit_s", 40), ("vit_b", 50), ("swin_b", 40), ("deit_t", 40)):
        ids = {row.id for row in table.select(model) if "/free-" not in row.id}
        ours = {f"{model}/ours-{name}-{off}" for name in READINGS for off in (40, 50, 60)}
        beyond = {f"{model}/best{full}-{off}" for full in ("", "-full") for off in (40, 50, 60)}
        windows = {f"{model}/ours-paper-windows-{off}" for off in (40, 50, 60) if model == "swin_b"}
        here = {f"{model}/{row}" for row in RUN_HERE.get(model, ())}
        assert ids == ours | beyond | windows | here | {f"{model}/baseline", f"{model}/svd-{percent}"}
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
    assert find_all(["table2"], whole=True)
    with pytest.raises(InputError, match="'table2/deit_b' names rows, where a whole table is wanted: table2"):
        find_all(["table2/deit_b"], whole=True)


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
