"""The processes of one run: which this one is, and what they tell each other. Alone, each function is the identity.

``launch.py`` starts them.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside ``torch.distributed``."""
    return (dist.get_rank(), dist.get_world_size()) if _together() else (0, 1)


def launched_from_outside() -> bool:
    """Whether torchrun or SLURM has started this process as one of several; not so in a shell on a SLURM node."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"]) > 1
    tasks, shell = int(os.environ.get("SLURM_NTASKS") or 1), os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return tasks > 1 and not shell


def die_with_parent() -> None:
    """End this process, which another one started, as soon as that one is dead, however it died."""

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank_and_world()[0] == 0


def is_first_here() -> bool:
    """Whether this is the first process of its machine, which writes what every machine keeps for itself."""
    return not _together() or int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0


def layout() -> tuple[int, int]:
    """Processes on each machine, and machines, as Lightning is told."""
    world = rank_and_world()[1]
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 0)  # torchrun's
    machines = world // local if local else int(os.environ.get("SLURM_NNODES") or 1)
    return world // machines, machines


def agreed(value: T) -> T:
    """The first process's value, in all of them: for what each could see otherwise, such as whether a file is there."""
    if not _together():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if not _together():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
