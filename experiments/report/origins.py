"""Say where the numbers of a published row come from: job, recipe, revisions, versions, commits, and what was trained."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.jobs.revisions import is_stale

Row = Mapping[str, Any]
OLDER = "(older revision)"
LIBRARIES = ("torch", "timm", "numpy")  # which numbers depend on
LEARNT = {"learn", "tokens"}  # stages of a job that train
TRAINED = re.compile(r"partial-ft|full-ft|kd\b|distilled|full FT")  # what protocols and methods say of training


def origin(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe where a row's results come from, one for each seed: the job and the training are the first one's.

    ``training`` is None unless all were trained. All have the same recipe and revisions, since none is stale.
    """
    first = results[0]
    trainings = [result.get("distillation") or result.get("finetune") for result in results]
    if not any(trainings) and first["job"].get("gradual_epochs"):  # of a structure, or tokens, with the weights
        learnt = {"epochs": first["job"]["gradual_epochs"]}
        trainings = [learnt if LEARNT & result["seconds"].keys() else None for result in results]
    return {
        "revisions": first["revisions"],
        "versions": versions_of(result["provenance"]["versions"] for result in results),
        "commits": sorted({result["provenance"]["git"]["commit"] for result in results}),
        "job": first["job"],
        "recipe": first["recipe"],
        "training": trainings[0] if all(trainings) else None,
    }


def versions_of(records: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """List the sets of libraries' versions that occur in several records."""
    known = {tuple(record.get(name, "unknown") for name in LIBRARIES) for record in records}
    return [dict(zip(LIBRARIES, versions, strict=True)) for versions in sorted(known)]


def untrained(row: Row) -> bool:
    """Tell whether a row is called fine-tuned or distilled although nothing was trained for its numbers."""
    called = TRAINED.search(f"{row['protocol']} {row['method']}")
    return bool(called) and (not row["training"] or row["training"]["epochs"] == 0)


def older(rows: Iterable[Row]) -> list[Row]:
    """List the rows that another revision or recipe made than would make them now."""
    return [row for row in rows if row["status"] == "done" and is_stale(row)]


def marked(rows: Sequence[Row], column: str) -> list[Row]:
    """Mark, in the column of that name, the older rows, and those made with another torch than most."""
    known = [(row["id"], torch_of(row["versions"])) for row in rows if row.get("versions")]
    most = Counter(torch for _, torch in known).most_common(1)
    marks = {name: f"(torch {torch})" for name, torch in known if torch != most[0][0]}
    marks |= {row["id"]: OLDER for row in older(rows)}
    return [
        {**row, column: f"{row[column] or ''} {marks[row['id']]}".strip()} if row["id"] in marks else row
        for row in rows
    ]


def marked_alike(rows: Sequence[Row]) -> list[Row]:
    """Mark every row of a method that has an older one, since they share a line."""
    methods = {row["method"] for row in older(rows)}
    return [{**row, "method": f"{row['method']} {OLDER}"} if row["method"] in methods else row for row in rows]


def torch_of(versions: Iterable[Mapping[str, str]]) -> str:
    """Name the versions of torch among several sets of versions."""
    return " and ".join(sorted({each["torch"] for each in versions}))


def commits_of(rows: Sequence[Row]) -> str:
    """Name the commits of the rows; where there are several and no row is older, add that their revisions are the same."""
    commits = [commit[:7] for commit in sorted({commit for row in rows for commit in row.get("commits") or ()})]
    if len(commits) == 1:
        return f"commit {commits[0]}"
    return f"commits {', '.join(commits)}{'' if older(rows) else ' (the same revisions)'}"
