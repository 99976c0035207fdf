"""The processes of one run: whether they can meet, which one this is, how they exchange values and divide work.

A single process exchanges nothing; ``launch.py`` starts several. The environment (of torchrun, SLURM, PyTorch and Gloo) is
checked first: what is wrong there would end in a traceback of each process, or in waiting for minutes.
"""

import atexit
import errno
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from typing import TypeVar

import torch
import torch.distributed as dist

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.tensors import from_bytes, to_bytes

TIMEOUT = "LOWRANK_VIT_TIMEOUT"  # variable: seconds that the name of a host may take to be found
SECONDS = 30.0
T = TypeVar("T")


def count_of(variable: str, default: int = 1) -> int:
    """Read a count from the environment. Raises ``InputError`` where it is not a number above zero."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable}={text!r} is not a number of processes: unset it, or let the launcher set it")
    return int(text)


def check_rendezvous() -> None:
    """Raise ``InputError`` for an address, a port or an interface at which processes cannot meet."""
    _check_interface()
    port = os.environ.get("MASTER_PORT")
    if port is not None:
        _check_port(port)
    if address := os.environ.get("MASTER_ADDR"):
        _check_address(address)


def _check_interface() -> None:
    """Refuse an interface that this machine does not have."""
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "")
    present = [name for _, name in socket.if_nameindex()]
    for name in filter(None, wanted.split(",")):
        if name not in present:
            raise InputError(
                f"GLOO_SOCKET_IFNAME={wanted}: this machine has no interface {name!r}, but {', '.join(present)}"
            )


def _check_port(text: str) -> None:
    """Refuse what is not a port, and a port that is taken where this process has to listen on it."""
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise InputError(f"MASTER_PORT={text!r} is not a port: unset it, or choose one from 1 to 65535")
    listens = (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"
    if not listens or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # then torchrun listens
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(text)))
        except OSError as error:
            why = (
                "is taken by another process"
                if error.errno == errno.EADDRINUSE
                else f"cannot be used ({error.strerror})"
            )
            raise InputError(f"MASTER_PORT={text} {why}: unset it, or choose a free one") from None


def _check_address(address: str) -> None:
    """Refuse a host whose name is not known, or not found in time: a lookup may take minutes."""
    text = os.environ.get(TIMEOUT) or str(SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        raise InputError(f"{TIMEOUT}={text!r} is not a number of seconds") from None
    failure: list[str] = [f"no answer within {seconds:g} s"]

    def look_up() -> None:
        try:
            socket.getaddrinfo(address, None)
            failure.clear()
        except OSError as error:
            failure[:] = [error.strerror or str(error)]

    search = threading.Thread(target=look_up, daemon=True)
    search.start()
    search.join(seconds)
    if failure:
        raise InputError(f"MASTER_ADDR={address}: the host cannot be found ({failure[0]}): name the first machine")


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


def split(costs: Mapping[str, float], world: int) -> list[list[str]]:
    """Divide the names among ``world`` processes: the most expensive first, each to the process with the least to do.

    >>> split({"a": 1, "b": 5, "c": 3, "d": 3}, 2)
    [['b', 'a'], ['c', 'd']]
    """
    shares: list[list[str]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += costs[name]
    return shares


def divide_work(
    costs: Mapping[str, float], work: Callable[[Sequence[str]], Mapping[str, T]], device: torch.device
) -> dict[str, T]:
    """Run ``work`` for all names, each in one process; every process gets all results, in the given order.

    ``work`` must not wait for other processes. Its ``InputError`` in one process is raised in all.
    """
    rank, world = rank_and_world()
    if world == 1:
        return dict(work(list(costs)))
    mine = set(split(costs, world)[rank])
    error = None
    results: Mapping[str, T] = {}
    try:
        results = work([name for name in costs if name in mine])
    except InputError as refused:
        error = str(refused)
    everything: dict[str, T] = {}
    for data, refusal in gathered((to_bytes(dict(results)), error)):
        if refusal is not None:
            raise InputError(refusal)
        everything |= from_bytes(data, device)
    return {name: everything[name] for name in costs}
