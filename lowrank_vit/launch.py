"""One run on several processes, each of which does all of it with the others; torchrun, SLURM or Lightning starts them."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from lowrank_vit.errors import InputError
from lowrank_vit.parallel import die_with_parent, is_first, launched_from_outside

T = TypeVar("T")


def processes_asked_for(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Processes on each machine, and machines: as a launcher has started them, else as told, else one.

    Raises ``InputError`` for less than one, where both speak and differ, and for several machines without a launcher.
    """
    if not all(count is None or count > 0 for count in (devices, num_nodes)):
        raise InputError(f"{devices} devices on {num_nodes or 1} machines: choose positive numbers")
    if not launched_from_outside():
        if (num_nodes or 1) > 1:
            raise InputError(f"{num_nodes} machines need a launcher on each: torchrun or srun, see the README")
        return devices or 1, 1
    world = int(os.environ.get("WORLD_SIZE") or os.environ["SLURM_NTASKS"])
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or world // int(os.environ.get("SLURM_NNODES") or 1))
    started = local, world // local
    asked = devices or started[0], num_nodes or started[1]
    if asked != started:
        raise InputError(
            f"{started[0]} processes on {started[1]} machines were started, but {asked[0]} devices on {asked[1]} are "
            "asked for: leave out --devices and --num-nodes, the launcher knows"
        )
    return started


def launch(
    function: Callable[..., T],
    *args: Any,
    devices: int | None = None,
    num_nodes: int | None = None,
    accelerator: str = "auto",
) -> T:
    """``function(*args)`` in all processes of a process group; what the first one returns.

    Where no launcher has started this process as one of several, ``devices`` are spawned, and ``function`` and ``args``
    are sent to them. Only the first one's standard output is seen. In one process, the function is just called.
    Raises ``InputError`` also where a spawned process dies, and for one that was raised in a spawned process.
    """
    local, machines = processes_asked_for(devices, num_nodes)
    if local * machines == 1 or (dist.is_available() and dist.is_initialized()):
        return function(*args)
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from torch.multiprocessing import ProcessExitedException

    from lowrank_vit.trainer import QuietFabricDDP, quiet_run

    strategy = QuietFabricDDP(start_method="popen" if launched_from_outside() else "spawn")
    with quiet_run(None):
        try:
            fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=machines, strategy=strategy)
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"Lightning refuses these settings: {str(error).strip().splitlines()[0]}") from error
        try:
            result: T = fabric.launch(functools.partial(_enter, functools.partial(function, *args)))
            return result
        except ProcessExitedException as error:
            raise InputError(
                f"{str(error).strip()}, perhaps for want of memory: run again, what was finished before is kept"
            ) from None


def _enter(work: Callable[[], T], fabric: Any) -> T:
    """``work`` holds its arguments, into which Lightning would look, and refuse frozen records."""
    if not launched_from_outside():
        die_with_parent()
    with contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        result = work()
        sys.stdout.flush()
        return result
