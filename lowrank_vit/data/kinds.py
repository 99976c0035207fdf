"""The kinds of sources of images, without importing what opens them."""

import re
from pathlib import Path

from lowrank_vit.runtime.files import AROUND
from lowrank_vit.runtime.registry import unknown

REGISTERED = re.compile(r'^@source\("(\w+)"', re.MULTILINE)


def source_kinds() -> list[str]:
    """Read the names that the files of this folder register, as ``SOURCES`` has them once all are imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sorted(name for file in files for name in REGISTERED.findall(file.read_text("utf-8")))


def check_kind(spec: str) -> None:
    """Raise ``InputError`` for a SPEC of images of an unknown kind."""
    kind, _, target = spec.partition(":")
    known = source_kinds()
    if known and kind not in known:
        raise unknown("data source", spec, known)
    if kind in AROUND and "," in target:
        check_kind(target.partition(",")[2])
