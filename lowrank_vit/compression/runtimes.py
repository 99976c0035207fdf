"""Speed of models beside each other, and of their modules, in PyTorch or in a program that runs exported files.

Models take turns in every round, and the speed-up is the median, over the rounds, of the ratio within a round. Random
weights and images: speed does not depend on them.
"""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules import counting
from lowrank_vit.modules.predicting import Predicting
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.evaluate.speed import (
    Run,
    Setting,
    activation_bytes,
    prepared,
    quartiles,
    resident_peak,
    seconds_in_turns,
    tensor_bytes,
)
from lowrank_vit.stages.export.formats import exporter, files, narrowed

MODES = {"torch": "eager", "compile": "compiled", "eager": "eager", "compiled": "compiled"}  # of torch itself
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}  # of the others, which run an exported file on the CPU
NAMES = ("torch", "compile", *FORMATS)
LARGEST = 2**20  # images in a batch


def mode_of(runtime: str) -> str:
    """Return the mode of a setting that stands for a program. Raises ``InputError`` for an unknown one."""
    if runtime not in MODES and runtime not in FORMATS:
        raise unknown("runtime", runtime, NAMES)
    return MODES.get(runtime, runtime)


def settings(device: str, runtimes: Sequence[str], batches: Sequence[int]) -> list[Setting]:
    """List all settings of programs and batches: float32 on the CPU, bfloat16 on a GPU; exported files run on the CPU.

    ``device``: ``auto`` is the CPU, and a GPU where there is one.
    Raises ``InputError`` for a batch below 1, for what cannot be run, and for a program or compiler that is not installed.
    """
    modes = [mode_of(each) for each in runtimes]
    if not batches or min(batches) < 1 or max(batches) > LARGEST:
        raise InputError(f"batches {list(batches)} cannot be run: give sizes from 1 to {LARGEST}")
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if "compiled" in modes and not any(shutil.which(name) for name in compilers if name):
        raise InputError("torch.compile needs a C++ compiler: install g++, or leave out 'compiled'")
    places = [device] if device != "auto" else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found: list[Setting] = []
    for mode in modes:
        if mode in FORMATS:
            exporter(FORMATS[mode])
            if device != "auto" and torch.device(device).type != "cpu":
                raise InputError(f'{mode} runs exported files on the CPU here: leave it out, or give `device="cpu"`')
        for place in ["cpu"] if mode in FORMATS else places:
            dtype = "bfloat16" if "cuda" in place else "float32"
            found += [Setting(place, dtype, mode, batch) for batch in batches]
    return found


@dataclass(frozen=True)
class Ready:
    """Hold a model that is ready to run, how its memory is measured, and the bytes of the file that was loaded, if any."""

    call: Run
    memory: Callable[[], int | None]
    file_bytes: int | None = None


def ready(model: nn.Module, setting: Setting, images: Tensor) -> Ready:
    """Make a model ready to run: its memory is that of its tensors and of a call, or of loading a file and a call."""
    if setting.mode not in FORMATS:
        module = prepared(model, setting)

        def memory() -> int | None:
            peak = activation_bytes(module, images)
            return None if peak is None else tensor_bytes(module) + peak

        return Ready(module, memory)
    loaded: list[Run] = []

    def load(run: Callable[[], Run]) -> None:
        loaded.append(run())
        loaded[0](images)

    with _file(Predicting(model), setting, images) as (run, size):
        peak = resident_peak(lambda: load(run))
    return Ready(loaded[0], lambda: None if peak is None else peak[1] - peak[0], size)


def _row(
    models: Mapping[str, nn.Module],
    setting: Setting,
    size: Sequence[int],
    macs: Mapping[str, int],
    seconds: float,
    clock: str,
) -> dict[str, Any]:
    """Make one row: every model in one setting, compared with the first one, which is dense.

    ``speedup``: the dense model's time over this model's; ``share_of_mac_ratio``: the speed-up over the ratio of their
    multiply-accumulates, 1 where all saved work is saved time. Spreads are quartiles.
    """
    torch.compiler.reset()
    images = torch.randn(setting.batch, *size, device=setting.device, dtype=getattr(torch, setting.dtype))
    runs = {name: ready(model, setting, images) for name, model in models.items()}
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
) -> dict[str, Any]:
    """Run all settings, one after the other: ``{"params", "macs", "rows", ...}``; the first model is the dense one.

    ``seconds``: about how long the models of a row are timed together.
    Raises ``InputError`` where the size of the model's images is not known.
    """
    size = counting.input_size(next(iter(models.values())))
    if size is None:
        raise InputError("the model does not say the size of its images, so it cannot be run")
    macs = {name: counting.multiply_accumulates(model, size) for name, model in models.items()}
    return {
        "threads": torch.get_num_threads(),
        "clock": clock,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "params": {name: counting.parameter_count(model) for name, model in models.items()},
        "macs": macs,
        "scans": {name: counting.scan_accumulates(model, size) for name, model in models.items()},  # are not in macs
        "rows": [
            _row(models, setting, size, macs, seconds, clock) for setting in track(chosen, "benchmark", shown=progress)
        ],
    }


def call_in(module: nn.Module, setting: Setting, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a call of a module, made ready in a setting, with these arguments.

    Raises ``InputError`` where the first one is no tensor, or the module cannot be exported by itself.
    """
    if setting.mode not in FORMATS:
        return partial(prepared(module, setting), *args, **kwargs)
    example, *others = args
    if not isinstance(example, Tensor):
        raise InputError(
            f"{type(module).__name__} is called with no tensor first, so it cannot be timed in {setting.mode}"
        )
    with _file(_Fixed(module, others, dict(kwargs)), setting, example) as (run, _):
        return partial(run(), example.float())


@contextmanager
def _file(module: nn.Module, setting: Setting, example: Tensor) -> Iterator[tuple[Callable[[], Run], int]]:
    """Write the file of a module, in float32; yield what loads it, and its bytes."""
    found = narrowed(FORMATS[setting.mode])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"module{found.suffix}"
        own = copy.deepcopy(module).float().eval().requires_grad_(False)
        found.write_fixed(own, example.float(), path)
        yield partial(found.run, path), sum(each.stat().st_size for each in files(found, path))


class _Fixed(nn.Module):
    """Call a module with one tensor, and with all other arguments as they were."""

    def __init__(self, module: nn.Module, others: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.others, self.kwargs = module, list(others), kwargs

    def forward(self, tensor: Tensor) -> Any:
        return self.module(tensor, *self.others, **self.kwargs)
