"""One run on several processes that torchrun, SLURM or Lightning starts; all of them execute the whole run together."""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from lowrank_vit.runtime.errors import InputError, reason_of
from lowrank_vit.runtime.processes import check_rendezvous, count_of, die_with_parent, is_first, launched_from_outside

T = TypeVar("T")
GONE = ("Connection closed by peer", "Connection reset by peer")  # Gloo's words


def processes_asked_for(devices: int | None, num_nodes: int | None) -> tuple[int, int]:
    """Return the processes per machine and the machines: as a launcher started them, else as asked for, else one.

    Raises ``InputError`` for counts below one, if the launcher's counts differ from those asked for, and for several
    machines without a launcher.
    """
    if not all(count is None or count > 0 for count in (devices, num_nodes)):
        raise InputError(f"{devices} devices on {num_nodes or 1} machines: choose positive numbers")
    if not launched_from_outside():
        if (num_nodes or 1) > 1:
            raise InputError(
                f"{num_nodes} machines need a launcher on each: torchrun or srun, see docs/start/cluster.md"
            )
        return devices or 1, 1
    world = count_of("WORLD_SIZE" if "WORLD_SIZE" in os.environ else "SLURM_NTASKS")
    local = count_of("LOCAL_WORLD_SIZE", world // count_of("SLURM_NNODES"))
    started = local, world // local
    asked = devices or started[0], num_nodes or started[1]
    if asked != started:
        raise InputError(
            f"{started[0]} processes on {started[1]} machines were started, but {asked[0]} devices on {asked[1]} are "
            "asked for: leave out `devices=` and `num_nodes=`, the launcher sets them"
        )
    return started


def launch(
    function: Callable[..., T],
    *args: Any,
    devices: int | None = None,
    num_nodes: int | None = None,
    accelerator: str = "auto",
) -> T:
    """Call ``function(*args)`` in all processes of a process group and return the first one's result.

    If no launcher has started this process as one of several, ``devices`` processes are spawned, and ``function`` and
    ``args`` are sent to them. Only the first one's standard output is shown. In one process, the function is just called.
    Raises ``InputError`` also if a spawned process dies or raises it.
    """
    local, machines = processes_asked_for(devices, num_nodes)
    if local * machines == 1 or (dist.is_available() and dist.is_initialized()):
        return function(*args)
    check_rendezvous()
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from torch.multiprocessing import ProcessExitedException

    from lowrank_vit.runtime.trainer import QuietFabricDDP, quiet_run

    strategy = QuietFabricDDP(start_method="popen" if launched_from_outside() else "spawn")
    with quiet_run(None):
        try:
            fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=machines, strategy=strategy)
        except (MisconfigurationException, ValueError) as error:
            raise InputError(f"Lightning refuses these settings: {reason_of(error)}") from error
        try:
            return fabric.launch(functools.partial(_enter, functools.partial(function, *args)))
        except ProcessExitedException as error:
            raise InputError(f"{str(error).strip()}, perhaps out of memory: run again, finished work is kept") from None


def _lost(error: RuntimeError) -> InputError | None:
    """Return the error for another process, perhaps on another machine, that has gone; None for any other error."""
    said = str(error)
    if not any(text in said for text in GONE):
        return None
    line = re.sub(r"^\[[^\]]*\] ", "", said.splitlines()[0])  # without the place in Gloo's code
    return InputError(
        f"another process of this run has died ({line.partition('. This')[0]}): its own output says why; run again, "
        "finished work is kept"
    )


def _enter(work: Callable[[], T], fabric: Any) -> T:
    """Run ``work`` in one process; its arguments are bound, as Lightning would inspect them and refuse frozen records."""
    if not launched_from_outside():
        die_with_parent()
    with contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        try:
            result = work()
        except RuntimeError as error:
            if (lost := _lost(error)) is None:
                raise
            raise lost from None
        sys.stdout.flush()
        return result
