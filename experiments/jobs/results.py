"""Read results from disk, and say where they lie."""

import json
from pathlib import Path
from typing import Any

from experiments.jobs.job import Job

RESULT, ERROR = "result.json", "error.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a JSON file; None where there is no such file, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def job_folder(folder: Path, job: Job) -> Path:
    """Name the folder of a job's files among all results: one place, since tables share jobs."""
    return folder / "jobs" / job.key


def find_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """Read the result of a finished job."""
    return read_json(job_folder(folder, job) / RESULT)
