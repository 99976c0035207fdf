"""A run of tables: plan their rows, run what is not finished, report."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.attempt import FAILED, Outcome
from experiments.cluster import check, run_on
from experiments.plan import Options, Planned, as_json, make_plan, open_images
from experiments.pool import run_here, run_pool
from experiments.registry import Row, Table, find_all
from experiments.results import PLAN, find_result, is_stale
from experiments.run import Hardware, Task
from experiments.tracking import wandb_installed
from lowrank_vit.errors import InputError
from lowrank_vit.launch import launch, processes_asked_for
from lowrank_vit.parallel import agreed, is_first, launched_from_outside

MOST_WORKERS = 8


def say(text: str) -> None:
    """One line on the error stream, of one process."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """``python -m experiments run``: 0 where all went well, 1 where a job failed.

    Raises ``InputError`` for bad options before anything is written, ``KeyboardInterrupt`` with one line of what is kept.
    """
    check(args.launcher, dict(args.slurm))
    if args.launcher is None:
        args.devices, args.num_nodes = processes_asked_for(args.devices, args.num_nodes)
    elif launched_from_outside():
        raise InputError("--launcher starts the jobs itself: leave out torchrun or srun")
    else:
        args.devices, args.num_nodes = args.devices or 1, args.num_nodes or 1
    if launched_from_outside():
        return launch(_run, args, accelerator=_hardware(args).accelerator)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    chosen = find_all(args.targets)
    options, hardware = _options(args), _hardware(args)
    workers = _workers(args, options)
    images = open_images(options.data)
    plans = [(table, selected, make_plan(table, options, images)) for table, selected in chosen]
    if is_first():
        from lowrank_vit.files import write_json

        for table, _, plan in plans:
            write_json(args.results / table.name / PLAN, as_json(table, options, images, plan))
    tasks = agreed(_tasks(args, plans, hardware))
    for _, selected, plan in plans:
        _say_skipped(plan, selected)
    outcomes = _run_tasks(args, tasks, workers, options) if tasks else []
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    if is_first():
        _report(args.results, [table for table, _ in chosen])
    if failed:
        say(f"{len(failed)} of {len(outcomes)} jobs failed, {failed[0].task.name} for one: {failed[0].said}")
    return 1 if failed else 0


def _options(args: argparse.Namespace) -> Options:
    names = ("data", "checkpoints", "seeds", "epochs", "steps", "solver", "limit", "calibration_samples", "batch_size")
    given = {name: getattr(args, name) for name in names}
    processes = (args.devices or 1) * (args.num_nodes or 1)
    return Options(**given, processes=processes, precision=args.precision)


def _hardware(args: argparse.Namespace) -> Hardware:
    accelerator = args.accelerator
    if accelerator == "auto" and args.data == "digits":
        accelerator = "cpu"  # the stand-ins are too small for a GPU
    return Hardware(args.devices, args.num_nodes, args.strategy, accelerator, args.precision)


def _workers(args: argparse.Namespace, options: Options) -> int:
    """Jobs side by side: as asked for, else a core each for the stand-ins, one where devices are shared."""
    if args.devices * args.num_nodes > 1:
        if (args.workers or 1) > 1:
            raise InputError("--workers above 1 runs jobs side by side on one device each: leave out --devices")
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return args.workers or (min(cores, MOST_WORKERS) if options.embedded else 1)


def _tasks(
    args: argparse.Namespace, plans: Sequence[tuple[Table, list[Row], list[Planned]]], hardware: Hardware
) -> list[Task]:
    """What is left to run of the selected rows, each job once; stale results are removed where they are run again."""
    from lowrank_vit.provenance import source_hash

    wandb = not args.no_wandb
    if wandb and not wandb_installed():
        say("wandb is not installed: going on without it")
        wandb = False
    wanted: dict[str, Task] = {}
    for table, selected, plan in plans:
        chosen = {row.id for row in selected}
        for item in plan:
            for job in item.jobs if item.row.id in chosen else ():
                about = (item.row.id, item.row.method, table.name, args.results, args.data, item.checkpoint)
                wanted.setdefault(job.key, Task(job, *about, hardware, wandb))
    left, stale = [], 0
    for task in wanted.values():
        result = find_result(task.folder, task.job)
        if result is not None and is_stale(result, source_hash()):
            stale += 1
            if args.rerun_stale:
                if is_first():
                    shutil.rmtree(task.own_folder, ignore_errors=True)
                result = None
        if result is None:
            left.append(task)
    if stale and not args.rerun_stale:
        say(f"{stale} finished jobs were made by another version of the package: --rerun-stale runs them again")
    return left


def _say_skipped(plan: list[Planned], selected: list[Row]) -> None:
    """One line for each reason to skip rows."""
    chosen = {row.id for row in selected}
    reasons: dict[str, list[Row]] = {}
    for item in plan:
        if item.reason and item.row.id in chosen:
            reasons.setdefault(item.reason, []).append(item.row)
    for reason, rows in reasons.items():
        say(f"skipped {rows[0].architecture} ({len(rows)} row{'s' * (len(rows) > 1)}): {reason}")


def _run_tasks(args: argparse.Namespace, tasks: Sequence[Task], workers: int, options: Options) -> list[Outcome]:
    from rich.console import Console

    from experiments.estimate import estimate
    from experiments.view import LiveView, duration
    from lowrank_vit.steps import resolve_device

    device, threads = str(resolve_device(tasks[0].hardware.device)), 1 if options.embedded else None
    workers = min(workers, len(tasks))
    seconds, basis = estimate(tasks, device, threads)
    total = sum(seconds) / workers
    say(f"{len(tasks)} jobs to run, {workers} at a time: about {duration(total)} (estimated from {basis})")
    expected = {task.job.key: own for task, own in zip(tasks, seconds, strict=True)}
    try:
        with LiveView(expected, Console(stderr=True, quiet=not is_first())) as view:
            if launched_from_outside():
                return run_here(tasks, view)
            if args.launcher:
                return run_on(args.launcher, dict(args.slurm), tasks, workers, threads, view)
            return run_pool(tasks, workers, threads, view)
    except KeyboardInterrupt:
        done = sum(find_result(task.folder, task.job) is not None for task in tasks)
        raise KeyboardInterrupt(
            f"{done} of {len(tasks)} jobs are finished and kept; the same command continues"
        ) from None


def _report(results: Path, chosen: Sequence[Table]) -> None:
    from experiments.report import write_report, written
    from experiments.terminal import show

    for table in chosen:
        show(write_report(results, table))
        say(f"written: {results / table.name}/{', '.join(written(table))}")
