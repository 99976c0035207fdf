"""Measure how much faster the small model of a job is than the dense one."""

from torch import nn

from experiments.jobs.ledger import Ledger
from experiments.jobs.task import Task
from lowrank_vit import Setting, benchmark
from lowrank_vit.runtime.hardware import resolve_device

BATCHES = (1, 8)
SECONDS = 6.0  # for each


def time_in_turns(task: Task, dense: nn.Module, small: nn.Module, ledger: Ledger) -> None:
    """Time both models in turns, as loaded, without compilation; keep the speed-up by the size of the batch.

    It is the median of the ratio within a round, so that other work on the machine affects both alike. On a CPU its own
    time counts: jobs run beside each other.
    """
    if "speed" in ledger.found:
        return
    device = resolve_device(task.hardware.device)
    kind = "bfloat16" if device.type == "cuda" else "float32"
    with ledger.stage("speed", "time it beside the dense model"):
        chosen = [Setting(str(device), kind, "eager", batch) for batch in BATCHES]
        clock = "wall" if device.type == "cuda" else "cpu"
        measured = benchmark({"dense": dense, "small": small}, chosen, seconds=SECONDS, clock=clock)
    found = {str(row["batch"]): row["small"]["speedup"] for row in measured["rows"]}
    ledger.keep("speed", {"threads": measured["threads"], "device": str(device), "clock": clock, **found})
