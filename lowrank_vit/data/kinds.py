"""The kinds of sources of images, without importing what opens them."""

import re
from collections.abc import Iterable
from pathlib import Path

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path
from lowrank_vit.runtime.registry import unknown

LOCAL = ("imagefolder", "parquet", "arrow")  # sources that are paths
AROUND = ("joined", "ordered")  # sources whose SPEC ends in another's
REGISTERED = re.compile(r'^@source\("(\w+)"', re.MULTILINE)


def source_kinds() -> list[str]:
    """Read the names that the files of this folder register, as ``SOURCES`` has them once all are imported."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sorted(name for file in files for name in REGISTERED.findall(file.read_text("utf-8")))


def unknown_source(spec: str, known: Iterable[str]) -> InputError:
    """Return the error for a SPEC of images that is none of the ``known`` ones; of a folder, what was meant."""
    if given_path(spec).is_dir():
        return InputError(f"data source {spec!r} names no kind: did you mean imagefolder:{spec}?")
    return unknown("data source", spec, known)


def check_spec(spec: str) -> None:
    """Raise ``InputError`` for a SPEC of images of an unknown kind, and for one with a path that is not there."""
    kind, _, target = spec.partition(":")
    known = source_kinds()
    if known and kind not in known:
        raise unknown_source(spec, known)
    if kind in AROUND and "," in target:
        check_spec(target.partition(",")[2])
    elif kind in LOCAL and target and not given_path(target).exists():
        raise InputError(f"{spec}: {target} does not exist")
