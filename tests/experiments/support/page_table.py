"""A made-up table for the page: every kind of row, numbers whose order as text is another one, gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.report.columns import CATALOGUE, DEFAULT
from experiments.report.page import page
from experiments.report.rows import FIELDS
from tests.support.markup import poisoned

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>'&"
COLUMNS = (*DEFAULT, "gap", "file_bytes")


def row(name: str, architecture: str, method: str, status: str = "done", **fields: Any) -> dict[str, Any]:
    """A row of ``table.json``."""
    known = {"id": name, "architecture": architecture, "method": method, "status": status, "protocol": "partial-ft"}
    return dict.fromkeys(FIELDS) | known | fields


def measured(name: str, architecture: str, method: str, percent: int, top1: float, **fields: Any) -> dict[str, Any]:
    """A compressed model of 10,000 parameters."""
    known = {
        "model": "m_small", "reduction": percent / 100, "params": 100 * (100 - percent), "params_dense": 10_000,
        "params_printed": f"{100 - percent}.5M (-{percent}%)", "top1_reported": 80 - percent / 10, "top1_dense": 95.0,
        "top1": top1, "top1_std": 1.5, "top1_before_finetune": top1 - 20, "seeds": [0, 1], "stale": False,
    }  # fmt: skip
    return row(name, architecture, method, **known | fields)


def rows() -> list[dict[str, Any]]:
    """Two architectures with two methods, a dense model, a row of another paper, one that is stale, one skipped."""
    return [
        row(
            "a/baseline", "Alpha", "Baseline", protocol="dense", model="m_small", params=10_000, params_dense=10_000,
            params_printed="100M", top1=95.0, top1_dense=95.0, top1_dense_std=0.5, top1_reported=82.0, stale=False,
            macs=1_234_567, macs_dense=1_234_567, seconds=9.0,
        ),
        row(
            "a/other", "Alpha", "Other", "reported", protocol="full-ft+kd", params_printed="60M (-40%)",
            top1_reported=81.25, source="Some authors",
        ),
        measured("a/svd-40", "Alpha", "SVD", 40, 80.0, gap=0.02, seconds=100.0, file_bytes=900_000),
        measured("a/svd-60", "Alpha", "SVD", 60, 9.5, gap=0.1, seconds=20.5, macs=800, macs_dense=2_000_000),
        measured("a/ours-40", "Alpha", "Ours", 40, 90.0, seconds=3.25, stale=True, relative_error_held_out=0.125),
        measured("a/ours-60", "Alpha", "Ours", 60, 85.0, relative_error_held_out=0.0625, file_bytes=20_000_000),
        measured("b/svd-40", "Beta", "SVD", 40, 70.0, protocol="partial-ft, 1 epoch", note="a remark"),
        row("b/ours-40", "Beta", "Ours", "skipped", reason="not run yet", reduction=0.4),
    ]  # fmt: skip


def told() -> dict[str, dict[str, Any]]:
    """Commands, jobs and layers; one layer stays dense with Ours."""
    job = {
        "key": "0123456789abcdef", "seed": 0, "commit": "89abcdef", "versions": {"torch": "2.15.0"}, "device": "cpu",
        "date": None, "wandb": None, "seconds": 1.5,
    }  # fmt: skip
    layers = [
        {
            "name": f"layers.{index}.blocks.17.mlp.fc1",
            "rank": (100.0, 65.0, 64.0)[index],
            "relative_error": 0.01 / 100**index,
            "relative_error_held_out": 0.02,
        }
        for index in range(3)
    ]
    dense = [
        layers[0],
        {"name": "layers.1.blocks.17.mlp.fc1", "rank": None, "relative_error": None, "relative_error_held_out": None},
    ]
    return {
        item["id"]: {
            "command": f"python -m experiments run table9/{item['id']} --seeds 0",
            "jobs": [job],
            "layers": [] if item["reduction"] is None else dense if item["method"] == "Ours" else layers,
        }
        for item in rows()
        if item["status"] == "done"
    }


def content(**fields: Any) -> dict[str, Any]:
    """``table.json``."""
    return {"title": "Table 9: made up", "profile": "embedded", "columns": list(COLUMNS), "rows": rows(), **fields}


def hostile() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The table with markup in every text that can come from outside."""
    bad = [
        item | dict.fromkeys(("method", "architecture", "protocol", "note", "model", "source"), HOSTILE)
        if item["id"] == "a/svd-40" else item | ({"reason": HOSTILE} if item["status"] == "skipped" else {})
        for item in rows()
    ]  # fmt: skip
    details = told()
    details["a/svd-40"] |= {"command": HOSTILE, "layers": [{**details["a/svd-40"]["layers"][0], "name": HOSTILE}]}
    details["a/svd-40"]["jobs"] = [details["a/svd-40"]["jobs"][0] | {"device": HOSTILE, "versions": {HOSTILE: HOSTILE}}]
    return content(rows=bad, title=HOSTILE), details


def hostile_everywhere() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The table with markup in every text field of every row but the words that the page knows, and in all details."""
    texts = ("base", "z", "solver", "optimizer", "target", "note", "source", "reason", "model", "params_printed")
    known = {"status", "columns"}
    bad = [
        {
            key: value if key in known else poisoned(value, HOSTILE)
            for key, value in (item | dict.fromkeys(texts, "x")).items()
        }
        for item in rows()
    ]
    details = {name + HOSTILE: poisoned(detail, HOSTILE) for name, detail in told().items()}
    for detail in details.values():
        for job in detail["jobs"]:
            job |= {"date": HOSTILE, "wandb": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    columns = list(CATALOGUE)
    return content(rows=bad, title=HOSTILE, profile=HOSTILE, columns=columns, findings=[HOSTILE]), details


def write_page(path: Path, imagenet: bool = False) -> Path:
    """The page of ``content``."""
    path.write_text(page(content(), told(), imagenet, "python -m experiments run table9"), encoding="utf-8")
    return path
