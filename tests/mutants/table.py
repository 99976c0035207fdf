"""The table of faults: the files in ``faults``, one for each part of the project."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "faults"


@dataclass(frozen=True)
class Fault:
    """One mistake: ``text``, which occurs once in ``file``, is replaced by ``put``, and one of ``tests`` should fail."""

    mistake: str
    file: str
    text: str
    put: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.mistake}"

    def occurrences(self, root: Path) -> int:
        """Count the places in the file, below ``root``, where the text is."""
        path = root / self.file
        return path.read_text(encoding="utf-8").count(self.text) if path.is_file() else 0

    def planted(self, root: Path) -> str:
        """Return the file's text with the mistake in it."""
        return (root / self.file).read_text(encoding="utf-8").replace(self.text, self.put)


def faults() -> list[Fault]:
    """Read the whole table."""
    entries = [
        entry
        for path in sorted(FOLDER.glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    ]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
