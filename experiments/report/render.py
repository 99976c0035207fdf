"""Render what is published in the texts of the repository: README and ``docs``.

A text holds a place for each rendering, ``<!-- published digits/table2 columns=method,top1 rows=deit_b/* -->`` and ``<!-- end
-->``. ``sentence=ROW`` writes one row in words, ``lines=ROWS`` a line for each method with its accuracy at every reduction;
``across=reduction`` writes the last column once for each reduction, side by side.
Within a sentence, ``<!-- value digits/table2 deit_b/best-50 accuracy -->97.9<!-- /value -->`` is one cell of one row.
Rows that an older revision has made are marked.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.jobs.job import read_json
from experiments.report.columns import chosen
from experiments.report.formats import file_size
from experiments.report.origins import OLDER, commits_of, marked, marked_alike, older, torch_of
from experiments.report.rows import FIELDS
from experiments.report.texts import across_lines, lines_of, table_lines
from experiments.report.uncertainty import said_of_errors, said_of_pairs, with_image_errors
from experiments.tables.rows import Table
from lowrank_vit.runtime.errors import InputError, amount

PUBLISHED = Path(__file__).parent.parent / "published"
SHOWN = {"top1", "accuracy", "top1_dense", "top1_before_finetune", "stored_top1"}  # with standard errors
PLACE = re.compile(r"<!-- published (?P<name>\S+)(?P<options>(?: \S+=\S+)*) -->\n.*?<!-- end -->", re.DOTALL)
VALUE = re.compile(r"(?P<mark><!-- value (?P<name>\S+) (?P<row>\S+) (?P<column>\S+) -->).*?<!-- /value -->")


def render_all(text: str, folder: Path = PUBLISHED) -> str:
    """Write everything between a Markdown text's marks anew.

    Raises ``InputError`` for a mark of nothing, and for a value's at the start of a line, where Markdown ends the paragraph.
    """
    if first := re.search(r"^\s*(<!-- value .*?-->)", text, re.MULTILINE):
        raise InputError(f"{first[1]} begins a line, which ends the paragraph: put a word before it")
    text = PLACE.sub(lambda place: "\n".join(_render(place, folder)), text)
    return VALUE.sub(lambda place: _value(place, _published(folder, place["name"])), text)


def published_file(plan: Mapping[str, Any], table: Table, folder: Path = PUBLISHED) -> Path:
    """Name the file that holds what is published of a table on the images of a plan."""
    _, given, evaluated = plan["profile"].rpartition(":")
    return folder / (evaluated if given else "digits") / f"{table.name}.json"


def _published(folder: Path, name: str) -> Any:
    content = read_json(folder / f"{name}.json")
    if content is None:
        raise InputError(f"nothing is published as {name!r}: run it, then python -m experiments publish")
    if "header" not in content:  # not of a benchmark; a file that nothing has been added to lately lacks fields
        content["rows"] = [dict.fromkeys(FIELDS) | row for row in content["rows"]]
    return content


def _render(place: re.Match[str], folder: Path) -> Iterator[str]:
    options = dict(option.split("=", 1) for option in place["options"].split())
    content = _published(folder, place["name"])
    yield place[0].partition("\n")[0]
    if "sentence" in options:
        yield _sentence(content, options["sentence"])
    elif "lines" in options:
        yield from _lines(content, options["lines"])
    else:
        yield from _benchmark(content, options) if "header" in content else _table(content, options)
    yield "<!-- end -->"


def _chosen_rows(content: Mapping[str, Any], patterns: str) -> tuple[list[dict[str, Any]], bool]:
    """List the rows whose names match, and tell whether they are of real images, whose ± is a standard error.

    Raises ``InputError`` where none does, for other patterns than "-", which is for a picture of all rows.
    """
    rows = [row for row in content["rows"] if any(fnmatch.fnmatchcase(row["id"], each) for each in patterns.split(","))]
    if not rows and patterns != "-":
        raise InputError(f"{content['title']} has no row {patterns!r} that is published")
    real = content["profile"] != "embedded"
    return [with_image_errors(row) for row in rows] if real else rows, real


def _lines(content: Mapping[str, Any], patterns: str) -> Iterator[str]:
    """Write the accuracy of each method at every reduction."""
    rows, real = _chosen_rows(content, patterns)
    about = content["title"].partition(" · ")[2]
    spread = "standard error of the sample" if real else "deviation over the seeds"
    dense = rows[0]["top1_dense"]
    yield f"*{rows[0]['architecture']}, {about}*: top-1 ± {spread}; the dense model has {dense:.1f}."
    yield ""
    reduction, accuracy = chosen(["reduction", "accuracy"])
    said: dict[str, list[str]] = {}
    for row in marked_alike(rows):
        text = f"{accuracy.write(row, {}, 1)} at -{reduction.write(row, {}, 1)}"
        said.setdefault(row["method"], []).append(text)
    yield from (f"- {method}: {', '.join(texts)}" for method, texts in said.items())


def _table(content: Mapping[str, Any], options: Mapping[str, str]) -> Iterator[str]:
    """Render a published table, or what is said above a figure."""
    rows, real = _chosen_rows(content, options.get("rows", "*"))
    names = options["columns"].split(",") if "columns" in options else content["columns"]
    behind = rows or content["rows"]  # without rows, a picture of all of them follows
    done = any(row["status"] == "done" for row in behind)
    origin = f"; {_origin(behind, content['provenance'])}; {commits_of(behind)}." if done else ""
    name, _, about = content["title"].partition(" · ")
    yield f"*{name.partition(':')[0]} · {about}*{origin}"
    yield ""
    if "across" in options:
        yield from across_lines(chosen(names), marked_alike(rows), options["across"], digits=1)
    elif rows:
        yield from table_lines(chosen(names), marked(rows, "method" if "method" in names else names[0]), digits=1)
    if real and any(column in SHOWN for column in names):
        yield from ("", *filter(None, (said_of_errors(rows), said_of_pairs(rows))))
    if stale := older(behind):
        yield from ("", f"{OLDER}: made by {commits_of(stale)}, before a revision or the recipe changed.")


def _value(place: re.Match[str], content: Mapping[str, Any]) -> str:
    """Write a single cell, without its spread."""
    (row, *_), _ = _chosen_rows(content, place["row"])
    mean = chosen([place["column"]])[0].write(row, {}, 1).partition(" ±")[0]
    return f"{place['mark']}{mean}{f' {OLDER}' * bool(older([row]))}<!-- /value -->"


def _sentence(content: Mapping[str, Any], name: str) -> str:
    """Say in words what a row has lost: in a file of a size, or after a reduction."""
    (row, *_), _ = _chosen_rows(content, name)
    about = content["title"].partition(" · ")[2]
    folder = re.fullmatch(r"on \w+:(\S+), (.*images)", about)
    images = f"measured on {folder[2]} of {folder[1]}" if folder else about
    seeds = f"{'mean over seeds' if len(row['seeds']) > 1 else 'seed'} {', '.join(map(str, row['seeds']))}"
    stale = f" {OLDER}" if older([row]) else ""
    if row["stored_bytes"] is not None:
        size, dense = file_size(row["stored_bytes"]), file_size(4 * row["params_dense"])
        kept = f"in a file of {size}, where float32 takes {dense}: {row['stored_top1']:.1f} % top-1."
    else:
        kept = f"with {row['reduction']:.0%} fewer parameters: {row['top1']:.1f} % top-1, "
        kept += f"where the dense model has {row['top1_dense']:.1f} %."
    return f"**{row['architecture']} {kept}** {row['protocol'].capitalize()}, {seeds}; {images}{stale}."


def _benchmark(content: Mapping[str, Any], options: Mapping[str, str]) -> Iterator[str]:
    """Render what ``python -m benchmarks.NAME --json FILE`` wrote, without empty columns.

    All rows, or those whose first cell matches ``rows``.
    """
    made, patterns = content["provenance"], options.get("rows", "*").split(",")
    yield f"*{content['title']}*; `{made['command']}` on {made['device']}, commit {made['git']['commit'][:7]}."
    if rows := [row for row in content["rows"] if any(fnmatch.fnmatchcase(row[0], each) for each in patterns)]:
        heads = [(name, "number" if place else "text") for place, name in enumerate(content["header"])]
        columns = [(head, cells) for head, *cells in zip(heads, *rows, strict=True) if any(cells)]
        yield ""
        yield from lines_of([head for head, _ in columns], list(zip(*(cells for _, cells in columns), strict=True)))


def _origin(rows: Sequence[Mapping[str, Any]], source: Mapping[str, Any]) -> str:
    """Say what it took to make the rows: their own seeds, jobs and seconds, on the machines of the last run."""
    done = [row for row in rows if row["status"] == "done"]
    seeds = sorted({seed for row in done for seed in row["seeds"]})
    jobs = sum(len(row["seeds"]) for row in done)
    seconds = sum(row["seconds"] * len(row["seeds"]) for row in done)
    versions = [each for row in done for each in row["versions"]]
    timm = " and ".join(sorted({each["timm"] for each in versions}))
    length = amount(round(seconds), "second") if seconds < 60 else amount(round(seconds / 60), "minute")
    return (
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {amount(jobs, 'job')}, {length} on "
        f"{', '.join(source['devices'])}, torch {torch_of(versions)}, timm {timm}"
    )
