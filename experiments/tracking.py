"""What of a job goes to Weights & Biases; only ``curves.py`` talks to it, too. Offline, unless ``WANDB_MODE`` says otherwise.

A job is one run, in the group of its table. Its id follows from the job and the package's source, so that a job which
goes on after an interruption goes on in the same run. Offline that is a second folder of the same id; ``wandb sync`` on
all folders joins them in the order in which they began, and their steps do not overlap. A killed process loses its
last second, so every part of a job says anew what is known by then of its layers: the same values on the same axes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.registry import Job
    from experiments.run import Task

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


def wandb_installed() -> bool:
    """Whether Weights & Biases can be used."""
    return importlib.util.find_spec("wandb") is not None


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with names joined by slashes, as W&B's own are; dots are paths to it.

    >>> flat({"top1": {"dense": 95.0}, "loss": 0.2})
    {'top1/dense': 95.0, 'loss': 0.2}
    """
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found |= flat(item, f"{prefix}{name}/")
        else:
            found[prefix + name] = item
    return found


def run_id(job: Job) -> str:
    """The id of a job's run: another source of the package is another run."""
    from lowrank_vit.provenance import source_hash

    return f"{job.key}-{source_hash()[:8]}"


def run_config(task: Task) -> dict[str, Any]:
    """Flat: the job, all fields of its recipe, the row it was first run for, where it comes from."""
    from experiments.plan import protocol
    from experiments.registry import tables
    from lowrank_vit import provenance

    job = task.job
    recipe = {} if job.recipe is None else {"recipe_fields": asdict(job.recipe_used())}
    rows = {row.id: row for row in tables()[task.table].runnable}
    row = rows.get(task.row)
    return flat(
        {
            **job.as_json(),
            **recipe,
            "table": task.table,
            "row": task.row,
            "method": task.method,
            "architecture": None if row is None else row.architecture,
            "protocol": None if row is None else protocol(row, job),
            "git": provenance.git_state() or {},
            "source": provenance.source_hash(),
            "versions": provenance.versions() | {"wandb": importlib.metadata.version("wandb")},
        }
    )


def _tags(job: Job) -> list[str]:
    tuned = "fully fine-tuned" if job.full else "fine-tuned"
    trained = tuned if job.epochs else "distilled" if job.distill_epochs else "training-free"
    trained = "dense" if job.recipe is None else trained
    return [job.model, "stand-in" if job.standin else "real", trained]


@contextmanager
def tracked(task: Task) -> Iterator[Any]:
    """The run of a job: silent, without system metrics; marked as failed where the job raises."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str((task.folder / "wandb").absolute()))  # of tables until they are synced
    import wandb

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
    name, mode = run_id(task.job), os.environ.get("WANDB_MODE", "offline")
    begun = sum(1 for _ in (task.folder / "wandb").glob(f"offline-run-*-{name}*"))
    run = wandb.init(
        project=PROJECT,
        id=name,
        resume="allow",
        group=task.table,
        job_type=task.job.measure or task.job.recipe or "dense",
        name=task.name,
        tags=_tags(task.job),
        config=run_config(task),
        dir=str(task.folder),
        mode=mode,  # type: ignore[arg-type]
        settings=settings,
    )
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
    """What a report says layer by layer: a table, and histories over the layers, over Z's steps, and over the allocator's.

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
    """The row of a layer. ``rank_share``: of the weight's full rank, 1 for a layer left dense."""
    rank, z = layer["rank"], layer["z"] or {}
    return {
        "index": index,
        "layer": layer["name"],
        "in": layer["in_features"],
        "out": layer["out_features"],
        "rank": rank,
        "rank_share": 1.0 if rank is None else rank / min(layer["in_features"], layer["out_features"]),
        "params": layer["params"],
        "error": layer["relative_error"],
        "error_unseen": layer["relative_error_held_out"],
        "z_kind": z.get("kind"),
        "z_params": z.get("params"),
        "z_loss_before": z.get("loss_before"),
        "z_loss": z.get("loss"),
        "z_loss_closed_form": z.get("loss_closed_form"),
    }


def log_result(run: Any, task: Task, measured: Mapping[str, Any]) -> None:
    """The flat result as the run's summary, and the models as an artifact."""
    if run is None:
        return
    result = {name: value for name, value in measured.items() if name != "layers"}
    run.summary.update(flat(result) | {"status": "done"})
    folders = [
        folder for name in ("compressed", "distilled", "finetuned") if (folder := task.own_folder / name).is_dir()
    ]
    if folders or task.checkpoint is not None:
        run.log_artifact(_artifact(task, folders, measured))


def _artifact(task: Task, folders: Sequence[Path], measured: Mapping[str, Any]) -> Any:
    """The model folders, and the dense weights by their path. Files are not copied: they are uploaded from where they lie.

    Models above ``ATTACHED_BYTES`` together are named by their paths and sha256 instead, and stay where they are.
    """
    import wandb

    job = task.job
    about = {"model": job.model, "dense": job.checkpoint, "recipe": job.recipe, "params": dict(measured["params"])}
    files = [(f"{folder.name}/{path.name}", path) for folder in folders for path in sorted(folder.iterdir())]
    by_path = sum(path.stat().st_size for _, path in files) > ATTACHED_BYTES
    hashes = {name: _sha256(path) for name, path in files} if by_path else {}
    artifact = wandb.Artifact(
        f"{job.model}-{job.recipe or 'dense'}-{job.key}", "model", metadata=about | {"sha256": hashes}
    )
    for name, path in files:
        if by_path:
            artifact.add_reference(path.absolute().as_uri(), name=name, checksum=False)
        else:
            artifact.add_file(str(path), name=name, policy="immutable")
    if task.checkpoint is not None:
        artifact.add_reference(
            task.checkpoint.absolute().as_uri(), name=f"dense/{task.checkpoint.name}", checksum=False
        )
    return artifact


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
