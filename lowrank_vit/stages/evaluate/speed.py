"""Measured speed: of a compressed model beside the dense one (latency, throughput, peak memory), and of single modules.

Other work on the machine affects all alike: models take turns in every round, and the speed-up is the median, over the
rounds, of the ratio within a round. Random weights and images: speed does not depend on them. Times of modules are measured
once, in turns, and kept in the cache folder.
"""

import ctypes
import hashlib
import json
import os
import shutil
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.permanent import copied
from lowrank_vit.modules import counting as cost
from lowrank_vit.modules.even import even_out
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder, write_json
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.runtime.progress import say, track
from lowrank_vit.runtime.provenance import device_name

MODES = ("eager", "compiled")
BATCHES = (1, 8, 64)
LARGEST = 2**20  # images in a batch
BLOCK = 0.2  # least seconds of a timed block of calls
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
WARM_UP = 2  # calls before each block
Run = Callable[[Tensor], Tensor]
Call = Callable[[], object]


def finished() -> float:
    """Read the clock, in seconds, once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


# torch.utils.benchmark has such timers, too, but takes long to import, and warns of a CUDA toolkit without a GPU
CLOCKS: dict[str, Callable[[], float]] = {"wall": finished, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """Describe where and how a model runs."""

    device: str
    dtype: str
    mode: str
    batch: int


def settings(device: str, modes: Sequence[str] = MODES, batches: Sequence[int] = BATCHES) -> list[Setting]:
    """List all settings of a run: float32 on the CPU, bfloat16 on a GPU; ``auto`` is the CPU, and a GPU where there is one.

    Raises ``InputError`` for an unknown mode, a batch below 1, and where ``compiled`` needs a compiler that is not installed.
    """
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"unknown mode {mode!r}: choose from {', '.join(MODES)}")
    if not batches or min(batches) < 1 or max(batches) > LARGEST:
        raise InputError(f"batches {list(batches)} cannot be run: give sizes from 1 to {LARGEST}")
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if "compiled" in modes and not any(shutil.which(name) for name in compilers if name):
        raise InputError("torch.compile needs a C++ compiler: install g++, or leave out 'compiled'")
    both = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    places = [
        (place, "bfloat16" if "cuda" in place else "float32") for place in (both if device == "auto" else [device])
    ]
    return [Setting(*place, mode, batch) for place in places for mode in modes for batch in batches]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile.

    >>> quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    (2.0, 3.0, 4.0)
    """
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return low, middle, high


def seconds_in_turns(
    models: Mapping[str, Run], images: Tensor, seconds: float, clock: str = "wall"
) -> dict[str, list[float]]:
    """Time a call of each model, in turns, in every round; about ``seconds`` in all, at least five rounds.

    Returns seconds by model, round by round. A first call, which compiles, is not counted. ``clock``: ``wall``, or ``cpu``,
    the processor time of this process over all threads: on a shared machine, what one thread would take alone.
    """
    timers, counts, estimate = {}, {}, 0.0
    for name, model in models.items():
        model(images)
        timers[name] = timeit.Timer(partial(model, images), timer=CLOCKS[clock])
        once = _seconds(timers[name], 1)
        counts[name] = max(1, round(BLOCK / once))
        estimate += once * (counts[name] + WARM_UP)
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / estimate)))
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, timed in timers.items():
            times[name].append(_seconds(timed, counts[name]))
    return times


def _seconds(timed: timeit.Timer, calls: int) -> float:
    """Return the mean seconds of a call, after some calls that are not counted."""
    timed.timeit(WARM_UP)
    return timed.timeit(calls) / calls


def activation_bytes(model: Run, images: Tensor) -> int | None:
    """Measure the most bytes that a call adds to the memory in use: the GPU's, or this process's.

    The latter is what the Linux kernel counts, workspaces included; None on other systems.
    """
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(images)
        return torch.cuda.max_memory_allocated() - before
    peak = resident_peak(lambda: model(images))
    return None if peak is None else max(0, peak[1] - peak[0])


def resident_peak(run: Callable[[], object]) -> tuple[int, int] | None:
    """Measure this process's memory before a call and the most during it, in bytes; None except on Linux."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the present use
    except (OSError, AttributeError, TypeError):
        return None
    before = _resident("VmRSS")
    run()
    return before, _resident("VmHWM")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def tensor_bytes(model: nn.Module) -> int:
    """Count the bytes of parameters and buffers in memory."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def for_inference(model: nn.Module) -> nn.Module:
    """Copy a model in the form that a GPU runs fast, with the same outputs: zeros make its widths multiples of 8.

    It takes more memory than the compressed model, as quantised and pivoted weights are whole again, and cannot be trained
    or saved as a compressed one. ``benchmark`` times this form on a GPU.
    Raises ``InputError`` where the model cannot be copied.
    """
    return even_out(copied(model).eval().requires_grad_(False))


def prepared(model: nn.Module, setting: Setting) -> nn.Module:
    """Return a copy of the model on the device, in the type and in the mode of ``setting``; on a GPU of even widths."""
    on_gpu = torch.device(setting.device).type == "cuda"
    ready = for_inference(model) if on_gpu else copied(model).eval().requires_grad_(False)
    ready = ready.to(setting.device, getattr(torch, setting.dtype))
    if setting.mode == "compiled":
        ready.compile(dynamic=False)
    return ready


@dataclass(frozen=True)
class Ready:
    """Hold a model that is ready to run, how its memory is measured, and the bytes of the file that was loaded, if any."""

    call: Run
    memory: Callable[[], int | None]
    file_bytes: int | None = None


def ready(model: nn.Module, setting: Setting, images: Tensor) -> Ready:
    """Make a model ready to run in torch; its memory is that of its tensors and of a call."""
    module = prepared(model, setting)

    def memory() -> int | None:
        peak = activation_bytes(module, images)
        return None if peak is None else tensor_bytes(module) + peak

    return Ready(module, memory)


Prepare = Callable[[nn.Module, Setting, Tensor], Ready]


def compare(
    models: Mapping[str, nn.Module],
    setting: Setting,
    size: Sequence[int],
    macs: Mapping[str, int],
    seconds: float,
    clock: str = "wall",
    prepare: Prepare = ready,
) -> dict[str, Any]:
    """Make one row: every model in one setting, compared with the first one, which is dense.

    ``speedup``: the dense model's time over this model's; ``share_of_mac_ratio``: the speed-up over the ratio of their
    multiply-accumulates, 1 where all saved work is saved time. Spreads are quartiles.
    """
    torch.compiler.reset()
    images = torch.randn(setting.batch, *size, device=setting.device, dtype=getattr(torch, setting.dtype))
    runs = {name: prepare(model, setting, images) for name, model in models.items()}
    with torch.inference_mode():
        measured = seconds_in_turns({name: run.call for name, run in runs.items()}, images, seconds, clock)
        memory = {name: run.memory() for name, run in runs.items()}
    dense, row = next(iter(models)), asdict(setting)
    for name, times in measured.items():
        low, middle, high = quartiles(times)
        row[name] = {
            "seconds": middle,
            "seconds_quartiles": [low, high],
            "images_per_second": setting.batch / middle,
            "peak_memory_bytes": memory[name],
            "rounds": len(times),
            **({} if runs[name].file_bytes is None else {"file_bytes": runs[name].file_bytes}),
        }
        if name != dense:
            low, middle, high = quartiles([one / other for one, other in zip(measured[dense], times, strict=True)])
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
    prepare: Prepare = ready,
) -> dict[str, Any]:
    """Run all settings, one after the other: ``{"params", "macs", "rows", ...}``; the first model is the dense one.

    ``seconds``: about how long the models of a row are timed together; ``prepare``: makes a model ready in a setting.
    Raises ``InputError`` where the size of the model's images is not known.
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
        "scans": {name: cost.scan_accumulates(model, size) for name, model in models.items()},  # are not in macs
        "rows": [
            compare(models, setting, size, macs, seconds, clock, prepare)
            for setting in track(chosen, "benchmark", shown=progress)
        ],
    }


def processor() -> str:
    """Return the processor's name, as Linux has it; nothing on other systems."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return ""


@dataclass(frozen=True)
class ModuleTimes:
    """Measure and keep the times of calls in one setting on this machine, by a text that describes each call."""

    setting: Setting

    @property
    def machine(self) -> dict[str, Any]:
        return {
            **asdict(self.setting),
            "device": device_name(torch.device(self.setting.device)),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "torch": torch.__version__,
            **({} if self.setting.mode in MODES else {self.setting.mode: metadata.version(self.setting.mode)}),
        }

    @property
    def path(self) -> Path:
        text = json.dumps(self.machine, sort_keys=True)
        return cache_folder() / "latency" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def seconds(self, calls: Mapping[str, Callable[[], Call]]) -> dict[str, float]:
        """Return the seconds of each call; those that are not known are made and measured, in turns, by one process."""
        measured = agreed(self._measured(calls) if is_first() else None)
        assert measured is not None
        return measured

    def _measured(self, calls: Mapping[str, Callable[[], Call]]) -> dict[str, float]:
        known = self._read()
        missing = {name: make() for name, make in calls.items() if name not in known}
        if missing:
            say(
                f"timing {len(missing)} modules, once on this machine: about {len(missing) * BLOCK * LEAST_ROUNDS:.0f} s"
            )
            known = self._read() | {name: median(times) for name, times in in_turns(missing, self.setting).items()}
            write_json(self.path, {"machine": self.machine, "seconds": known})
        return {name: known[name] for name in calls}

    def _read(self) -> dict[str, float]:
        with suppress(OSError, ValueError, KeyError):
            return json.loads(self.path.read_text())["seconds"]
        return {}


def in_turns(calls: Mapping[str, Call], setting: Setting) -> dict[str, list[float]]:
    """Time each call in every round; returns seconds by name, round by round."""
    nothing = torch.empty(0, device=setting.device)
    with torch.inference_mode():
        return seconds_in_turns({name: lambda _, call=call: call() for name, call in calls.items()}, nothing, 0.0)  # type: ignore[misc]
