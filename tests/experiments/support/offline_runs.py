"""Offline runs read back with W&B's own reader, ``wandb leet inspect --json``."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """What is in one folder ``offline-run-...``."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)  # metric: what it is drawn over
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        """W&B's own steps."""
        return [row["_step"] for row in self.history]

    def curve(self, x: str, y: str) -> list[tuple[Any, Any]]:
        """A metric over its axis."""
        return [(row[x], row[y]) for row in self.history if y in row]

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table, from the file that the run keeps of it."""
        (path,) = [row[f"{name}.path"] for row in self.history if f"{name}.path" in row]
        content = json.loads((self.folder / "files" / path).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def read_run(folder: Path) -> OfflineRun:
    """Every record of a run, in the order written."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = OfflineRun(folder)
    for record in map(json.loads, lines):
        content = record.get(record["type"], {})
        match record["type"]:
            case "run":
                found.run = content
                found.config |= content["config"]["update"]
            case "config":
                found.config |= content["update"]
            case "summary":
                found.summary |= content.get("update", {})
            case "history":
                found.history.append(content["item"])
            case "metric":
                name = content.get("name") or content.get("glob_name")
                found.axes[name] = content.get("step_metric", "")
            case "artifact":
                found.artifacts.append(content)
            case "exit":
                found.exit_code = content.get("exit_code", 0)
    return found


def read_runs(results: Path) -> list[OfflineRun]:
    """All runs under a folder of results, in the order in which they began."""
    return [read_run(folder) for folder in sorted((results / "wandb").glob("offline-run-*"))]
