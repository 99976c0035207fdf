"""Run tables: plan their rows, run what is not finished, report."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from experiments.jobs.job import find_result
from experiments.jobs.revisions import is_stale
from experiments.jobs.run import FAILED, Outcome
from experiments.jobs.task import EMBEDDED, Task
from experiments.runner.cluster import check, executor_of, run_on
from experiments.runner.estimate import estimate
from experiments.runner.plan import PLAN, Options, Planned, as_json, make_plan, open_images
from experiments.runner.pool import run_here, run_pool
from experiments.runner.view import LiveView, duration, show_expected
from experiments.tables.catalogue import find_all
from experiments.tables.rows import Row, Table
from lowrank_vit import Hardware
from lowrank_vit.data.loading import default_workers
from lowrank_vit.runtime.errors import InputError, amount
from lowrank_vit.runtime.extras import installed
from lowrank_vit.runtime.files import write_json
from lowrank_vit.runtime.launch import launch, processes_asked_for
from lowrank_vit.runtime.processes import agreed, is_first, launched_from_outside, own_cores
from lowrank_vit.runtime.progress import make_console

MOST_WORKERS = 8
Report = Callable[[Path, Table], list[str]]  # renders a table, and names the files written


def say(text: str) -> None:
    """Print one line on the error stream, of one process."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


def run(args: argparse.Namespace, report: Report) -> int:
    """Run ``python -m experiments run``: 0 where all went well, 1 where a job failed. ``report`` renders a table.

    Raises ``InputError`` for bad options before anything is written, ``KeyboardInterrupt`` with one line of what is kept.
    """
    check(args.launcher, dict(args.slurm))
    if args.launcher is None:
        args.devices, args.num_nodes = processes_asked_for(args.devices, args.num_nodes)
    elif launched_from_outside():
        raise InputError("--launcher starts the jobs itself: leave out torchrun or srun")
    args.devices, args.num_nodes = args.devices or 1, args.num_nodes or 1
    if launched_from_outside():
        return launch(_run, args, report, accelerator=_hardware(args).accelerator)
    return _run(args, report)


def _run(args: argparse.Namespace, report: Report) -> int:
    chosen, options, hardware = find_all(args.targets), _options(args), _hardware(args)
    workers = _workers(args, options)
    images = open_images(options.data)
    plans = [(table, selected, make_plan(table, options, images)) for table, selected in chosen]
    for table, _, plan in plans if is_first() and not args.dry_run else ():
        content = as_json(table, options, images, plan) | {"command": args.command}
        write_json(args.results / table.name / PLAN, content)
    tasks = agreed(_tasks(args, plans, hardware))
    for line in skipped(item for _, selected, plan in plans for item in plan if item.row in selected):
        say(line)
    outcomes = _run_tasks(args, tasks, workers, options) if tasks else []
    if args.dry_run:
        return 0
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    if is_first():
        for table, _ in chosen:
            files = report(args.results, table)
            say(f"written: {args.results / table.name}/{', '.join(files)}")
    if failed:
        say(f"{len(failed)} of {len(outcomes)} jobs failed, {failed[0].task.name} for one: {failed[0].said}")
    return 1 if failed else 0


def _options(args: argparse.Namespace) -> Options:
    processes, batch_size, images = (args.devices or 1) * (args.num_nodes or 1), args.batch_size, args.global_batch
    if images is not None:
        batch_size, left = divmod(images, processes)
        if left:
            above = processes * (batch_size + 1)
            raise InputError(f"--global-batch {images} cannot be split evenly among {processes} devices: give {above}")
    given = {field.name: getattr(args, field.name) for field in fields(Options) if hasattr(args, field.name)}
    return Options(**given | {"batch_size": batch_size, "processes": processes})


def _hardware(args: argparse.Namespace) -> Hardware:
    small = args.accelerator == "auto" and args.data == EMBEDDED  # the stand-ins are too small for a GPU
    return Hardware(args.devices, args.num_nodes, "cpu" if small else args.accelerator, args.strategy, args.precision)


def _workers(args: argparse.Namespace, options: Options) -> int:
    """Count the jobs to run side by side: as asked for, else one per core for stand-ins, one where devices are shared."""
    if args.devices * args.num_nodes > 1:
        if (args.workers or 1) > 1:
            raise InputError("--workers above 1 runs jobs side by side on one device each: leave out --devices")
        return 1
    return args.workers or (min(own_cores(), MOST_WORKERS) if options.embedded else 1)


def _loader_workers(args: argparse.Namespace, workers: int) -> int | None:
    """Count the loading processes of each process of a job: as asked for, else a share of this machine's cores.

    None leaves it to the job: on another machine, and for the digits, which need none.
    """
    if args.loader_workers is not None or args.launcher == "slurm" or args.data == EMBEDDED:
        return args.loader_workers
    return default_workers(1 if launched_from_outside() else args.devices * workers)


def _tasks(
    args: argparse.Namespace, plans: Sequence[tuple[Table, list[Row], list[Planned]]], hardware: Hardware
) -> list[Task]:
    """List the tasks left to run of the selected rows, each job once."""
    wandb = not args.no_wandb
    if wandb and not installed("wandb"):
        say("wandb is not installed: going on without it (pip install 'lowrank-vit[experiments]')")
        wandb = False
    wanted: dict[str, Task] = {}
    for table, selected, plan in plans:
        chosen = {row.id for row in selected}
        for item in plan:
            for job in item.jobs if item.row.id in chosen else ():
                about = (item.row.id, item.row.method, table.name, args.results, args.data, item.checkpoint)
                wanted.setdefault(job.key, Task(job, *about, hardware=hardware, wandb=wandb))
    results = {key: find_result(task.folder, task.job) for key, task in wanted.items()}
    stale = {key for key, result in results.items() if result is not None and is_stale(result)}
    if stale and not args.rerun_stale:
        say(f"{len(stale)} finished jobs were made by an older revision: --rerun-stale runs them again")
    again = stale if args.rerun_stale else set()
    return [task for key, task in wanted.items() if results[key] is None or key in again]


def skipped(plan: Iterable[Planned]) -> list[str]:
    """Write a line for each kind of reason to skip rows; the kind is what stands before its colon."""
    kinds: dict[str, list[Planned]] = {}
    for item in plan:
        if item.reason:
            kinds.setdefault(item.reason.partition(":")[0], []).append(item)
    lines = []
    for items in kinds.values():
        models = ", ".join(dict.fromkeys(item.row.architecture for item in items))
        others = "; the table names the others' reasons" if len({item.reason for item in items}) > 1 else ""
        lines.append(f"{amount(len(items), 'row')} skipped ({models}): {items[0].reason}{others}")
    return lines


def _run_tasks(args: argparse.Namespace, tasks: Sequence[Task], workers: int, options: Options) -> list[Outcome]:
    threads, workers = 1 if options.embedded else None, min(workers, len(tasks))
    tasks = [replace(task, loader_workers=_loader_workers(args, workers)) for task in tasks]
    times, basis = agreed(estimate(tasks, threads) if is_first() else ([], ""))
    console = make_console(stderr=True, quiet=not is_first())
    if args.dry_run or not options.embedded:
        show_expected(tasks, times, console)
    about = duration(sum(times) / workers)
    say(f"{len(tasks)} jobs to run, {workers} at a time: about {about} (estimated from {basis})")
    if args.dry_run:
        return []
    view = LiveView({task.job.key: seconds for task, seconds in zip(tasks, times, strict=True)}, console)
    try:
        with view.progress:
            if launched_from_outside():
                return run_here(tasks, view)
            if args.launcher:
                executor = executor_of(args.launcher, dict(args.slurm), tasks[0])
                return run_on(executor, tasks, workers if args.launcher == "local" else len(tasks), threads, view)
            return run_pool(tasks, workers, threads, view)
    except KeyboardInterrupt:
        done = sum(find_result(task.folder, task.job) is not None for task in tasks)
        raise KeyboardInterrupt(
            f"{done} of {len(tasks)} jobs are finished and kept; the same command continues"
        ) from None
