"""Keep what is known of a job in Weights & Biases, offline unless ``WANDB_MODE`` says otherwise.

A job is one run, in the group of its table. Its id follows from the job and the package's source, so that a job which
goes on after an interruption goes on in the same run. Offline that is a second folder of the same id; ``wandb sync`` on
all folders joins them in the order in which they began, and their steps do not overlap. A killed process loses its
last second, so every part of a job says anew what is known by then of its layers: the same values on the same axes.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_vit.records.report import largest_size

PROJECT = "lowrank-vit"
STEPS_OF_AN_ATTEMPT = 1_000_000  # a job that goes on counts from the next million
ATTACHED_BYTES = 64 * 2**20  # models up to this size are added as files, larger ones by their path and sha256
LAYERS = ("index", "rank", "rank_share", "error", "error_unseen", "z_loss_before", "z_loss")  # drawn layer by layer
AXES = {  # history that is not over W&B's own step: its metrics, and what they are drawn over
    "compensation/*": "compensation/step",
    "allocation/*": "allocation/step",
    "layers/*": "layers/index",
    "val_top1": "trainer/global_step",
    "train_loss": "trainer/global_step",
    "train_kl": "trainer/global_step",
    "lr": "trainer/global_step",
}


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to names joined by slashes, as W&B's own are; dots are paths to it.

    >>> flat({"top1": {"dense": 95.0}, "loss": 0.2})
    {'top1/dense': 95.0, 'loss': 0.2}
    """
    joined: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            joined |= flat(item, f"{prefix}{name}/")
        else:
            joined[prefix + name] = item
    return joined


@dataclass(frozen=True)
class RunDescription:
    """Say what a run is: its id, its group, its kind (W&B's job type), its name, its tags and its flat config."""

    id: str
    group: str
    kind: str
    name: str
    tags: list[str]
    config: Mapping[str, Any]
    folder: Path  # of all results


@dataclass(frozen=True)
class Models:
    """Tell which models a job leaves: the artifact's name, what is told of it, the folders, and the dense weights' file."""

    name: str
    about: Mapping[str, Any]
    folders: Sequence[Path]
    checkpoint: Path | None


@contextmanager
def tracked(description: RunDescription) -> Iterator[Any]:
    """Track a run within the block: silent, without system metrics; marked as failed if the block raises."""
    folder = description.folder / "wandb"
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute()))  # of tables until they are synced
    mode = os.environ.get("WANDB_MODE", "offline")
    begun = sum(1 for _ in folder.glob(f"offline-run-*-{description.id}*"))
    run = _begin(description, mode)
    if begun and mode == "offline":
        run.log({"attempt": begun}, step=begun * STEPS_OF_AN_ATTEMPT, commit=True)
    try:
        yield run
    except BaseException as error:
        run.summary.update({"status": "failed", "reason": f"{type(error).__name__}: {error}"})
        run.finish(exit_code=1)
        raise
    run.finish()


def _begin(description: RunDescription, mode: str) -> Any:
    import wandb

    run = wandb.init(
        project=PROJECT,
        id=description.id,
        resume="allow",
        group=description.group,
        job_type=description.kind,
        name=description.name,
        tags=description.tags,
        config={**description.config, "versions/wandb": importlib.metadata.version("wandb")},
        dir=str(description.folder),
        mode=mode,  # type: ignore[arg-type]
        settings=_settings(),
    )
    for metric, axis in AXES.items():
        run.define_metric(axis, hidden=True)
        run.define_metric(metric, step_metric=axis, summary="none" if metric.endswith("*") else None)
    return run


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # what a killed job has not written is lost; the default is 15 seconds
    )


def log_compression(run: Any, report: Mapping[str, Any]) -> None:
    """Log a report layer by layer: a table, and histories over the layers, over Z's steps, and over the allocator's.

    ``run`` None: nothing is tracked.
    """
    if run is None:
        return
    import wandb

    rows = [_layer(index, layer) for index, layer in enumerate(report["layers"])]
    run.log({"layers": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
    for row in rows:
        run.log({f"layers/{name}": row[name] for name in LAYERS if row[name] is not None})
    curves: dict[int, dict[str, float]] = {}
    for name, curve in (report.get("compensation") or {"curves": {}})["curves"].items():
        for step, loss in curve:
            curves.setdefault(step, {})[f"compensation/{name.replace('.', '/')}"] = loss
    for step, losses in sorted(curves.items()):
        run.log({"compensation/step": step, **losses})
    for entry in report["trajectory"]:
        run.log({f"allocation/{name}": value for name, value in entry.items()})


def _layer(index: int, layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a layer. ``rank_share``: of the largest size, 1 for a layer left dense."""
    rank, z = layer["rank"], layer["z"] or {}
    return {
        "index": index,
        "layer": layer["name"],
        "in": layer["in_features"],
        "out": layer["out_features"],
        "rank": rank,
        "rank_share": 1.0 if rank is None else rank / largest_size(layer),
        "params": layer["params"],
        "error": layer["relative_error"],
        "error_unseen": layer["relative_error_held_out"],
        "z_kind": z.get("kind"),
        "z_params": z.get("params"),
        "z_loss_before": z.get("loss_before"),
        "z_loss": z.get("loss"),
        "z_loss_closed_form": z.get("loss_closed_form"),
    }


def gains(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the dense model's size that is gone, and the points of top-1 lost, where both are known.

    >>> gains({"params": {"dense": 200, "compressed": 50}, "top1": {"dense": 95.0, "before": None, "after": 93.5}})
    {'params/reduction': 0.75, 'top1/drop': 1.5}
    """
    found = {}
    for name in ("params", "macs"):
        size = measured.get(name) or {}
        if size.get("dense") and size.get("compressed") is not None:
            found[f"{name}/reduction"] = 1 - size["compressed"] / size["dense"]
    top1 = measured.get("top1") or {}
    for when, name in (("after", "drop"), ("before", "drop_before")):
        if top1.get(when) is not None:
            found[f"top1/{name}"] = top1["dense"] - top1[when]
    return found


def log_result(run: Any, measured: Mapping[str, Any], models: Models) -> None:
    """Keep the flat result as the run's summary, with what it saved and lost, and the models as an artifact."""
    if run is None:
        return
    result = {name: value for name, value in measured.items() if name != "layers"}
    run.summary.update(flat(result) | gains(measured) | {"status": "done"})
    if models.folders or models.checkpoint is not None:
        run.log_artifact(_artifact(models))


def _artifact(models: Models) -> Any:
    """List the model folders, and the dense weights by their path. Files are uploaded from where they lie, not copied.

    Models above ``ATTACHED_BYTES`` together are named by their paths and sha256 instead, and stay where they are.
    """
    import wandb

    files = [(f"{folder.name}/{path.name}", path) for folder in models.folders for path in sorted(folder.iterdir())]
    by_path = sum(path.stat().st_size for _, path in files) > ATTACHED_BYTES
    hashes = {name: _sha256(path) for name, path in files} if by_path else {}
    artifact = wandb.Artifact(models.name, "model", metadata={**models.about, "sha256": hashes})
    for name, path in files:
        if by_path:
            artifact.add_reference(path.absolute().as_uri(), name=name, checksum=False)
        else:
            artifact.add_file(str(path), name=name, policy="immutable")
    if models.checkpoint is not None:
        path = models.checkpoint
        artifact.add_reference(path.absolute().as_uri(), name=f"dense/{path.name}", checksum=False)
    return artifact


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
