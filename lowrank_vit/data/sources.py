"""From a SPEC string to the source that it stands for."""

from dataclasses import replace

from lowrank_vit.data.classes import class_labels
from lowrank_vit.data.kinds import unknown_source
from lowrank_vit.data.splits import NO_LABEL, SOURCES, ImageSource, ImageSplit, source, two_parts
from lowrank_vit.runtime.errors import InputError

FORM = "ordered:ORDER,SPEC"


def open_source(spec: str, classes: int | None = None) -> ImageSource:
    """Open a SPEC, for a model of so many ``classes``, where that is known.

    It is ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``arrow:PATH``, ``hf:NAME``, ``joined:FOLDER,SPEC`` or
    ``ordered:ORDER,SPEC``. Folders are listed and tables mapped, no image is decoded. Raises ``InputError`` where the SPEC
    is unknown or what it names is missing, empty or unreadable.
    """
    return numbered(opened(spec), classes)


def opened(spec: str) -> ImageSource:
    """Open a SPEC whose classes are not numbered yet; see ``open_source``."""
    kind, _, target = spec.partition(":")
    forms = {name: SOURCES.get(name).form for name in SOURCES.names()}
    if kind not in forms:
        raise unknown_source(spec, forms.values())
    if not target and ":" in forms[kind]:
        raise InputError(f"the data source {spec!r} is incomplete: write {forms[kind]}")
    if ":" in spec and ":" not in forms[kind]:
        raise InputError(f"the data source {spec!r} takes no path: write {forms[kind]}")
    return SOURCES.get(kind).open(spec, target)


def numbered(source: ImageSource, classes: int | None) -> ImageSource:
    """Give every class the label that ``class_labels`` says. Raises ``InputError`` for an order of classes without names."""
    if not source.names:
        if source.order is not None:
            raise InputError(f"the classes of {source.spec} have no names: leave out the class order")
        return source
    labels, count = class_labels(source.names, source.spec, source.order, classes, declared=source.declared)
    numbers = [labels[name] for name in source.names]

    def relabelled(split: ImageSplit | None) -> ImageSplit | None:
        if split is None or numbers == list(range(len(numbers))):
            return split
        return split.but(labels=[label if label == NO_LABEL else numbers[label] for label in split.labels])

    train, validation = relabelled(source.train), relabelled(source.validation)
    return replace(source, num_classes=count, train=train, validation=validation)


@source("ordered", FORM)
def open_ordered(spec: str, target: str) -> ImageSource:
    """Open ``ordered:ORDER,SPEC``: SPEC, its classes in the ORDER "natural" or "text", or that of a file of names."""
    order, rest = two_parts(spec, target, FORM, "ordered:natural,imagefolder:PATH")
    return replace(opened(rest), spec=spec, order=order)
