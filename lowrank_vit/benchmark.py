"""Measured speed of a compressed model beside the dense one: latency, throughput and peak memory.

Other work on the machine hits both alike: the models take turns in every round, and the speed-up is the median, over the
rounds, of the ratio within a round. Random weights and images: speed does not depend on them.
"""

from __future__ import annotations

import copy
import ctypes
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer

from lowrank_vit import cost
from lowrank_vit.errors import InputError
from lowrank_vit.progress import track

MODES = ("eager", "compiled")
CLOCKS: dict[str, Callable[[], float]] = {"wall": timer, "cpu": time.process_time}
BATCHES = (1, 8, 64)
BLOCK = 0.2  # seconds that a timed block of calls takes at least
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
CALLS = 3  # of a block of one call: torch.utils.benchmark warms up with two

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """Where and how a model runs."""

    device: str
    dtype: str
    mode: str
    batch: int


def settings(device: str, modes: Sequence[str] = MODES, batches: Sequence[int] = BATCHES) -> list[Setting]:
    """All settings of a run: float32 on the CPU, bfloat16 on a GPU; ``auto`` is the CPU, and a GPU where there is one.

    Raises ``InputError`` for an unknown mode, a batch below 1, and where what ``compiled`` needs is not installed.
    """
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"unknown mode {mode!r}: choose from {', '.join(MODES)}")
    if not batches or min(batches) < 1:
        raise InputError(f"batches {list(batches)} cannot be run: give sizes of at least 1")
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if "compiled" in modes and not any(shutil.which(name) for name in compilers if name):
        raise InputError("torch.compile needs a C++ compiler: install g++, or leave it out with --modes eager")
    both = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    places = [
        (place, "bfloat16" if "cuda" in place else "float32") for place in (both if device == "auto" else [device])
    ]
    return [Setting(*place, mode, batch) for place in places for mode in modes for batch in batches]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile.

    >>> quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    (2.0, 3.0, 4.0)
    """
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return low, middle, high


def seconds_in_turns(
    models: Mapping[str, Run], images: Tensor, seconds: float, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of a call in every round, for each model, which take turns; about ``seconds`` in all, at least five rounds.

    A first call, which compiles what is compiled, is not counted. ``clock``: ``wall``, or ``cpu``, the processor's time of
    this process, of all threads together: on a machine that others use, what one thread would take alone.
    """
    timers, counts, estimate = {}, {}, 0.0
    for name, model in models.items():
        model(images)
        timers[name] = Timer(
            "model(images)",
            globals={"model": model, "images": images},
            timer=CLOCKS[clock],
            num_threads=torch.get_num_threads(),
        )
        once = timers[name].timeit(1).median
        counts[name] = max(1, round(BLOCK / once))
        estimate += once * (counts[name] + CALLS - 1)
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / estimate)))
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, timed in timers.items():
            found[name].append(timed.timeit(counts[name]).median)
    return found


def activation_bytes(model: Run, images: Tensor) -> int | None:
    """The most bytes that a call adds to what is held already: of the GPU's memory, or of this process's own.

    The latter as the Linux kernel counts it, pages of workspaces included; None on other systems.
    """
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(images)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is no part of what is held
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    except (OSError, AttributeError, TypeError):
        return None
    before = _resident("VmRSS")
    model(images)
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers in memory."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def prepared(model: nn.Module, setting: Setting) -> nn.Module:
    """A copy of the model, where and as ``setting`` wants it."""
    own = copy.deepcopy(model).eval().requires_grad_(False).to(setting.device, getattr(torch, setting.dtype))
    if setting.mode == "compiled":
        own.compile(dynamic=False)
    return own


def compare(
    models: Mapping[str, nn.Module],
    setting: Setting,
    size: Sequence[int],
    macs: Mapping[str, int],
    seconds: float,
    clock: str = "wall",
) -> dict[str, Any]:
    """One row: every model in one setting, beside the first of them, which is the dense one.

    ``speedup``: the dense model's time over the model's own; ``share_of_mac_ratio``: that over the ratio of their
    multiply-accumulates, 1 where all saved work is saved time. Spreads are quartiles.
    """
    torch.compiler.reset()
    own = {name: prepared(model, setting) for name, model in models.items()}
    images = torch.randn(setting.batch, *size, device=setting.device, dtype=getattr(torch, setting.dtype))
    with torch.inference_mode():
        found = seconds_in_turns(own, images, seconds, clock)
        peaks = {name: activation_bytes(model, images) for name, model in own.items()}
    dense, row = next(iter(models)), asdict(setting)
    for name, times in found.items():
        peak = peaks[name]
        low, middle, high = quartiles(times)
        row[name] = {
            "seconds": middle,
            "seconds_quartiles": [low, high],
            "images_per_second": setting.batch / middle,
            "peak_memory_bytes": None if peak is None else tensor_bytes(own[name]) + peak,
            "rounds": len(times),
        }
        if name != dense:
            low, middle, high = quartiles([one / other for one, other in zip(found[dense], times, strict=True)])
            row[name] |= {"speedup": middle, "speedup_quartiles": [low, high]}
            row[name]["share_of_mac_ratio"] = middle / (macs[dense] / macs[name])
    return row


def benchmark(
    models: Mapping[str, nn.Module],
    chosen: Sequence[Setting],
    *,
    seconds: float = 10.0,
    clock: str = "wall",
    progress: bool = False,
) -> dict[str, Any]:
    """All settings, one after the other: ``{"params", "macs", "rows", ...}``; the first model is the dense one.

    ``seconds``: about how long the models of a row are timed together. Raises ``InputError`` where the size of the
    model's images is not known.
    """
    size = cost.input_size(next(iter(models.values())))
    if size is None:
        raise InputError("the model does not say the size of its images, so it cannot be run")
    macs = {name: cost.multiply_accumulates(model, size) for name, model in models.items()}
    return {
        "threads": torch.get_num_threads(),
        "clock": clock,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "params": {name: cost.parameter_count(model) for name, model in models.items()},
        "macs": macs,
        "rows": [
            compare(models, setting, size, macs, seconds, clock)
            for setting in track(chosen, "benchmark", shown=progress)
        ],
    }
