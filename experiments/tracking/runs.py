"""Keep what is known of a job in Weights & Biases, offline unless ``WANDB_MODE`` says otherwise.

A job is one run, in the group of its table. Its id follows from the job and the package's source, so that a job which
goes on after an interruption goes on in the same run. Offline that is a second folder of the same id; ``wandb sync`` on
all folders joins them in the order in which they began, and their steps do not overlap. A killed process loses its
last second, so every part of a job says anew what is known by then of its layers: the same values on the same axes.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to names joined by slashes, as W&B's own are; dots are paths to it.

    >>> flat({"top1": {"dense": 95.0}, "loss": 0.2})
    {'top1/dense': 95.0, 'loss': 0.2}
    """
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("/"): value}
    return {path: leaf for name, item in value.items() for path, leaf in flat(item, f"{prefix}{name}/").items()}


@contextmanager
def tracked(folder: Path, run_id: str, config: Mapping[str, Any], **about: Any) -> Iterator[Any]:
    """Track a run within the block: silent, without system metrics; marked as failed if the block raises.

    ``folder``: of all results; ``about``: what else ``wandb.init`` is told of the run.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str((folder / "wandb").absolute()))  # of tables until they are synced
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    begun = sum(1 for _ in (folder / "wandb").glob(f"offline-run-*-{run_id}*"))
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # what a killed job has not written is lost; the default is 15 seconds
    )
    known = {**config, "versions/wandb": wandb.__version__}
    where: dict[str, Any] = {"project": PROJECT, "id": run_id, "resume": "allow", "dir": str(folder), "mode": mode}
    run = wandb.init(config=known, settings=settings, **where, **about)
    for metric, axis in AXES.items():
        run.define_metric(axis, hidden=True)
        run.define_metric(metric, step_metric=axis, summary="none" if metric.endswith("*") else None)
    if begun and mode == "offline":
        run.log({"attempt": begun}, step=begun * STEPS_OF_AN_ATTEMPT, commit=True)
    try:
        yield run
    except BaseException as error:
        run.summary.update({"status": "failed", "reason": f"{type(error).__name__}: {error}"})
        run.finish(exit_code=1)
        raise
    run.finish()


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
        **{f"z_{name}": z.get(name) for name in ("kind", "params", "loss_before", "loss", "loss_closed_form")},
    }


def log_models(run: Any, name: str, about: Mapping[str, Any], folders: Sequence[Path], checkpoint: Path | None) -> None:
    """Log an artifact: the folders of a job's models, and the file of the dense weights by its path.

    Files are uploaded from where they lie, not copied. Models above ``ATTACHED_BYTES`` together are named by their paths
    and sha256 instead, and stay where they are.
    """
    import wandb

    files = [(f"{folder.name}/{path.name}", path) for folder in folders for path in sorted(folder.iterdir())]
    by_path = sum(path.stat().st_size for _, path in files) > ATTACHED_BYTES
    hashes = {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in files} if by_path else {}
    artifact = wandb.Artifact(name, "model", metadata={**about, "sha256": hashes})
    for file, path in files:
        if by_path:
            artifact.add_reference(path.absolute().as_uri(), name=file, checksum=False)
        else:
            artifact.add_file(str(path), name=file, policy="immutable")
    if checkpoint is not None:
        artifact.add_reference(checkpoint.absolute().as_uri(), name=f"dense/{checkpoint.name}", checksum=False)
    run.log_artifact(artifact)
