"""Costs as ratios to a forward pass: CPU seconds in turns, and counted multiply-accumulates."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[], object]


def seconds(run: Run) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(forward: Run, runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Return the median ratio of each run to the forward pass right before it, after one uncounted round."""
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            bare = seconds(forward)
            ratio = seconds(run) / bare
            measured[name] += [ratio] if index else []
    return {name: median(values) for name, values in measured.items()}


def macs(run: Run) -> int:
    """Count the multiply-accumulates of all products in a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2
