"""Tables of images in the Hugging Face layout: parquet files, saved arrow folders, data sets of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_vit.data.splits import NO_LABEL, ImageSource, ImageSplit, source
from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.extras import hub_reachable
from lowrank_vit.runtime.files import given_path

if TYPE_CHECKING:
    import datasets

TRAIN = ("train",)
VALIDATION = ("validation", "val", "test")  # the first one that exists
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")


class TableSplit(ImageSplit):
    """Serve the rows of a table with a column of encoded images."""

    def __init__(self, table: datasets.Dataset, column: str, labels: Sequence[int], name: str) -> None:
        super().__init__(labels)
        self.table, self.column, self.name = table, column, name

    def content(self, index: int) -> bytes:
        """Return the encoded bytes, from the table or from the file that it points to."""
        cell = self.table[int(index)][self.column] or {}
        if cell.get("bytes"):
            return cell["bytes"]
        if cell.get("path") and Path(cell["path"]).is_file():
            return Path(cell["path"]).read_bytes()
        raise InputError(f"{self.where(index)} holds no image bytes: save the table with its images embedded")

    def where(self, index: int) -> str:
        return f"in row {index} of {self.name}"


@source("parquet", "parquet:PATH")
@source("arrow", "arrow:PATH")
@source("hf", "hf:NAME")
def open_table(spec: str, target: str) -> ImageSource:
    """Open ``parquet:PATH``, ``arrow:PATH`` or ``hf:NAME``; see ``open_source``.

    The image column is ``image``, ``img`` or the only one of images; the label column ``label`` or ``labels``, of
    numbers, class labels or names. Without a label column every label is -1.
    """
    kind = spec.partition(":")[0]
    tables = {"parquet": _read_parquet, "arrow": _read_arrow, "hf": _read_hub}[kind](spec, target)
    chosen = {
        name: next((tables[key] for key in keys if key in tables), None)
        for name, keys in (("train", TRAIN), ("validation", VALIDATION))
    }
    present = {name: table for name, table in chosen.items() if table is not None}
    if not present:
        raise InputError(
            f"{spec}: its splits are {', '.join(tables) or 'none'}; expected train and validation (or test)"
        )
    labels, num_classes, names, declared = _labels(spec, present)
    splits = {name: _table_split(spec, name, table, labels[name]) for name, table in present.items()}
    pair = (splits.get("train"), splits.get("validation"))
    return ImageSource(spec, num_classes, *pair, names=names, declared=declared)


def _read_parquet(spec: str, target: str) -> Mapping[str, datasets.Dataset]:
    root = given_path(target)
    if not root.is_dir():
        raise InputError(f"{spec}: there is no folder {root}; expected train*.parquet and validation*.parquet in it")
    files: dict[str, list[str]] = {}
    for folder in (root, root / "data"):
        for file in sorted(folder.glob("*.parquet")):
            split = next((key for key in (*TRAIN, *VALIDATION) if file.name.startswith(key)), None)
            if split and file.is_file():
                files.setdefault(split, []).append(str(file))
        if files:
            break
    if not files:
        raise InputError(f"{spec}: {root} has no train*.parquet, validation*.parquet or test*.parquet, nor its data/")
    import datasets

    # one builder for each split: a test file may lack the columns of the others
    try:
        return {split: datasets.Dataset.from_parquet(paths) for split, paths in files.items()}
    except Exception as error:  # datasets wraps pyarrow's errors, several layers deep
        raise _unreadable(spec, error) from error


def _read_arrow(spec: str, target: str) -> Mapping[str, datasets.Dataset]:
    import datasets

    root = given_path(target)
    if not root.is_dir():
        raise InputError(f"{spec}: there is no folder {root}; expected what DatasetDict.save_to_disk writes")
    try:
        saved = datasets.load_from_disk(str(root))
    except Exception as error:  # a folder of something else fails in many ways
        raise _unreadable(spec, error) from error
    return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _read_hub(spec: str, target: str) -> Mapping[str, datasets.Dataset]:
    import datasets

    if not hub_reachable() and not datasets.config.HF_HUB_OFFLINE:
        raise InputError(
            f"{spec}: the hub cannot be reached; set HF_HUB_OFFLINE=1 if the data set is cached here, "
            "or pass imagefolder:PATH, parquet:PATH or arrow:PATH"
        )
    try:
        return datasets.load_dataset(target)
    except Exception as error:  # network, gating, a missing data set, a full disk: no common base class
        raise _unreadable(spec, error) from error


def _unreadable(spec: str, error: Exception) -> InputError:
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the innermost one tells what happened
    return InputError(f"{spec} cannot be read: {reason_of(error)}")


def _table_split(spec: str, name: str, table: datasets.Dataset, labels: Sequence[int]) -> TableSplit:
    import datasets

    typed = [column for column, feature in table.features.items() if isinstance(feature, datasets.Image)]
    named = [column for column in IMAGE_COLUMNS if column in table.column_names]
    column = next(iter([*named, *typed]), None)
    if column is None:
        raise InputError(f"{spec}: {name} has no column 'image' among {', '.join(table.column_names)}")
    if not len(table):
        raise InputError(f"{spec}: {name} has no rows")
    try:
        encoded = table.cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # of pyarrow or datasets
        raise InputError(f"{spec}: the column {column!r} of {name} holds no encoded images") from error
    return TableSplit(encoded, column, labels, f"{name} of {spec}")


def _labels(
    spec: str, tables: Mapping[str, datasets.Dataset]
) -> tuple[dict[str, list[int]], int | None, tuple[str, ...], bool]:
    """Return the labels of each split, and the number of classes (None if there are no labels).

    Then the names of the classes, whose ranks are the labels, where they have any, and whether their column orders them.
    """
    import datasets

    values: dict[str, list[Any]] = {}
    declared: dict[str, list[str]] = {}
    for split, table in tables.items():
        column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
        values[split] = list(table[column]) if column else [None] * len(table)
        feature = table.features.get(column) if column else None
        if isinstance(feature, datasets.ClassLabel):
            declared[split] = feature.names
    names = next(iter(declared.values()), [])
    if any(other != names for other in declared.values()):
        raise InputError(f"{spec}: its splits number their classes differently: save them with the same class names")
    whole = [value for column in values.values() for value in column if value is not None]
    odd = next((value for value in whole if not isinstance(value, int | str)), None)
    if odd is not None:
        raise InputError(f"{spec}: a label must be a number or a class name, not {type(odd).__name__}")
    given = set(whole)
    if given and all(isinstance(value, str) for value in given):
        names, declared = sorted(given), {}
    mapping, count = _numbering(spec, given, names)
    labels = {split: [mapping.get(value, NO_LABEL) for value in column] for split, column in values.items()}
    return labels, count, tuple(names), bool(declared)


def _numbering(spec: str, given: set[Any], names: Sequence[str]) -> tuple[Mapping[Any, int], int | None]:
    """Map each value of the label column to its rank or number, and count classes; ``names``: those that it has."""
    if not given:
        return {}, len(names) or None
    if all(isinstance(value, str) for value in given):
        return {name: rank for rank, name in enumerate(names)}, len(names)
    if not all(isinstance(value, int) for value in given):
        raise InputError(f"{spec}: some labels are numbers and some are names: give one or the other")
    ranks = {value: value for value in given if value >= 0}  # the hub's unlabelled test splits hold -1
    return ranks, len(names) or max(ranks, default=NO_LABEL) + 1 or None
