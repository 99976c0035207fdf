"""Programs in which a model or a module of it runs, so that they can be timed beside each other."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules.predicting import Predicting
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.evaluate import speed
from lowrank_vit.stages.evaluate.speed import Ready, Run, Setting, prepared, resident_peak, settings
from lowrank_vit.stages.export.formats import exporter, files, narrowed

MODES = {"torch": "eager", "compile": "compiled", "eager": "eager", "compiled": "compiled"}  # of torch itself
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}  # of the others, which run an exported file on the CPU
NAMES = ("torch", "compile", *FORMATS)


def mode_of(runtime: str) -> str:
    """Return the mode of a setting that stands for a program. Raises ``InputError`` for an unknown one."""
    if runtime not in MODES and runtime not in FORMATS:
        raise unknown("runtime", runtime, NAMES)
    return MODES.get(runtime, runtime)


def settings_in(device: str, runtimes: Sequence[str], batches: Sequence[int]) -> list[Setting]:
    """List all settings of programs and batches; exported files run on the CPU in float32.

    Raises ``InputError`` for what cannot be run, and for a program that is not installed.
    """
    found: list[Setting] = []
    for mode in map(mode_of, runtimes):
        if mode not in FORMATS:
            found += settings(device, [mode], batches)
            continue
        exporter(FORMATS[mode])
        if device != "auto" and torch.device(device).type != "cpu":
            raise InputError(f'{mode} runs exported files on the CPU here: leave it out, or give `device="cpu"`')
        found += [Setting("cpu", "float32", mode, each.batch) for each in settings("cpu", ["eager"], batches)]
    return found


def ready_in(model: nn.Module, setting: Setting, images: Tensor) -> Ready:
    """Make a whole model ready for a batch of images. Its memory, with an exported file, is that of loading it and a call."""
    if setting.mode not in FORMATS:
        return speed.ready(model, setting, images)
    loaded: list[Run] = []

    def load(run: Callable[[], Run]) -> None:
        loaded.append(run())
        loaded[0](images)

    with _file(Predicting(model), setting, images) as (run, size):
        peak = resident_peak(lambda: load(run))
    return Ready(loaded[0], lambda: None if peak is None else peak[1] - peak[0], size)


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
        ready = copy.deepcopy(module).float().eval().requires_grad_(False)
        found.write_fixed(ready, example.float(), path)
        yield partial(found.run, path), sum(each.stat().st_size for each in files(found, path))


class _Fixed(nn.Module):
    """Call a module with one tensor, and with all other arguments as they were."""

    def __init__(self, module: nn.Module, others: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.others, self.kwargs = module, list(others), kwargs

    def forward(self, tensor: Tensor) -> Any:
        return self.module(tensor, *self.others, **self.kwargs)
