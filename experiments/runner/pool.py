"""Run jobs side by side in a few long-lived processes, since importing torch and Lightning takes seconds."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from experiments.jobs.run import FAILED, Outcome, attempt, ended
from experiments.jobs.task import Task
from experiments.runner.view import LiveView
from lowrank_vit.runtime.processes import die_with_parent

Serve = Callable[[Connection, Path, int | None], None]


def run_here(tasks: Sequence[Task], view: LiveView) -> list[Outcome]:
    """Run the tasks one after the other in this process, which torchrun or SLURM started."""
    outcomes = []
    for task in tasks:
        status, said = attempt(task, lambda text, task=task: view.stage(task, text))  # type: ignore[misc]
        outcomes.append(Outcome(task, status, said))
        view.end(outcomes[-1])
    return outcomes


@dataclass
class _Worker:
    """Hold a process, this end of its pipe, and the task that it has."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def run_pool(
    tasks: Sequence[Task], workers: int, threads: int | None, view: LiveView, serve: Serve | None = None
) -> list[Outcome]:
    """Run the tasks, ``workers`` at a time, each process on ``threads`` threads (None: torch's own choice).

    ``serve`` is what a process does (``serve_jobs``). A process that dies takes one task with it, no more. A
    ``KeyboardInterrupt`` ends all of them at once: whatever is on disk is whole, and the next run goes on from there.
    """
    queue, outcomes = deque(tasks), []
    team: dict[int, _Worker] = {}
    free = deque(range(min(workers, len(tasks))))
    try:
        while queue or any(worker.task for worker in team.values()):
            while queue and free:
                number = free.popleft()
                if number not in team or not team[number].process.is_alive():
                    team[number] = _start(number, tasks[0].folder, threads, serve or serve_jobs)
                team[number].task = queue.popleft()
                team[number].pipe.send(team[number].task)
            ready = connection.wait([worker.pipe for worker in team.values() if worker.task])
            for number in [number for number, worker in team.items() if worker.task and worker.pipe in ready]:
                outcome = _listen(team[number], view)
                if outcome is not None:
                    outcomes.append(outcome)
                    view.end(outcome)
                    free.append(number)
    finally:
        for worker in team.values():
            worker.process.kill()
    return outcomes


def _start(number: int, folder: Path, threads: int | None, serve: Serve) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, folder / "logs" / f"worker{number}.log", threads))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits: it is ended from here
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    there.close()
    return _Worker(process, here)


def _listen(worker: _Worker, view: LiveView) -> Outcome | None:
    """Receive a message of a worker: pass on a stage, or return how the task ended."""
    task = worker.task
    assert task is not None
    try:
        status, said = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        killed = ", killed, perhaps out of memory" if worker.process.exitcode == -signal.SIGKILL else ""
        status, said = ended(task, FAILED, f"the process died with exit code {worker.process.exitcode}{killed}")
    if status == "stage":
        view.stage(task, said)
        return None
    worker.task = None
    return Outcome(task, status, said)


def serve_jobs(pipe: Connection, log: Path, threads: int | None) -> None:
    """Serve as a worker: run what comes through the pipe; all that libraries print goes to the log."""
    die_with_parent()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    if threads is not None:
        torch.set_num_threads(threads)
    while True:
        task = pipe.recv()
        print(f"== {task.name} {task.job.key}", flush=True)
        pipe.send(attempt(task, lambda text: pipe.send(("stage", text))))
