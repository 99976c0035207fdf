"""How models and modules are timed and their memory is measured.

Other work on the machine affects all alike: models take turns in every round. Times of modules are measured once, and kept
in the cache folder.
"""

import ctypes
import hashlib
import json
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
from lowrank_vit.modules.even import even_out
from lowrank_vit.runtime.files import cache_folder, write_json
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.runtime.progress import say
from lowrank_vit.runtime.provenance import device_name

MODES = ("eager", "compiled")
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
