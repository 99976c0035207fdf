"""From a SPEC string to the source that it stands for."""

from __future__ import annotations

from lowrank_vit.data.splits import SOURCES, ImageSource
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown


def open_source(spec: str) -> ImageSource:
    """Open a SPEC.

    It is ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``arrow:PATH``, ``hf:NAME`` or ``joined:FOLDER,SPEC``.
    Folders are listed and tables mapped, no image is decoded. Raises ``InputError`` where the SPEC is unknown or what
    it names is missing, empty or unreadable.
    """
    kind, _, target = spec.partition(":")
    forms = {name: SOURCES.get(name).form for name in SOURCES.names()}
    if kind not in forms:
        raise unknown("data source", spec, forms.values())
    if not target and ":" in forms[kind]:
        raise InputError(f"the data source {spec!r} is incomplete: write {forms[kind]}")
    if ":" in spec and ":" not in forms[kind]:
        raise InputError(f"the data source {spec!r} takes no path: write {forms[kind]}")
    return SOURCES.get(kind).open(spec, target)
