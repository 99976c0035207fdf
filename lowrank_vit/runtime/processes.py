"""The processes of one run: which one this is, and how they exchange values. A single process exchanges nothing.

``launch.py`` starts them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
from multiprocessing import connection
from typing import TypeVar

import torch.distributed as dist

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import count_of

T = TypeVar("T")


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) outside ``torch.distributed``."""
    return (dist.get_rank(), dist.get_world_size()) if _together() else (0, 1)


def launched_from_outside() -> bool:
    """Tell whether torchrun or SLURM has started this process as one of several; a shell on a SLURM node does not count.

    Raises ``InputError`` where variables contradict each other, and for several tasks that srun has not started.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if "WORLD_SIZE" not in os.environ:
            raise InputError("TORCHELASTIC_RUN_ID is set, but WORLD_SIZE is not: start with torchrun, or unset it")
        return count_of("WORLD_SIZE") > 1
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") or count_of("SLURM_NTASKS") == 1:
        return False
    if "SLURM_STEP_ID" not in os.environ:
        raise InputError(
            f"SLURM has room for {os.environ['SLURM_NTASKS']} tasks, but srun has not started this process: put srun before "
            "the command, or unset SLURM_NTASKS for a run of one process"
        )
    return True


def die_with_parent() -> None:
    """End this process as soon as the process that started it is dead, however it died."""

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def leave_at_exit() -> None:
    """Leave the process group before the interpreter shuts down.

    Gloo's threads may still release the tensors of the last exchange. One that needs the interpreter for it while that
    shuts down aborts the process.
    """
    atexit.register(_leave)


def _leave() -> None:
    if _together():
        dist.destroy_process_group()


def is_first() -> bool:
    """Tell whether this is the process that writes and prints."""
    return rank_and_world()[0] == 0


def is_first_here() -> bool:
    """Tell whether this is the first process of its machine, which writes the files that each machine keeps."""
    return not _together() or int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0


def layout() -> tuple[int, int]:
    """Return the number of processes per machine and the number of machines, as Lightning takes them."""
    world = rank_and_world()[1]
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 0)  # torchrun's
    machines = world // local if local else int(os.environ.get("SLURM_NNODES") or 1)
    return world // machines, machines


def own_cores() -> int:
    """Count the cores for this process: those that SLURM binds to its task, else an equal share of the machine's."""
    bound = os.environ.get("SLURM_CPUS_PER_TASK")
    if bound and launched_from_outside() and "TORCHELASTIC_RUN_ID" not in os.environ:
        return int(bound)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, layout()[0]))


def agreed(value: T) -> T:
    """Return the first process's value in all processes, for values that could differ, such as whether a file exists."""
    if not _together():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if not _together():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
