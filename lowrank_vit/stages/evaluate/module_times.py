"""Times of modules on this machine: measured once, in turns, and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lowrank_vit.runtime.files import cache_folder, write_json
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.runtime.progress import say
from lowrank_vit.runtime.provenance import device_name
from lowrank_vit.stages.evaluate.speed import BLOCK, LEAST_ROUNDS, MODES, Setting, seconds_in_turns

Call = Callable[[], object]


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
        """Describe what the times depend on."""
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
        """Return the file of this machine in this setting."""
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
            seconds: dict[str, float] = json.loads(self.path.read_text())["seconds"]
            return seconds
        return {}


def in_turns(calls: Mapping[str, Call], setting: Setting) -> dict[str, list[float]]:
    """Time each call in every round; returns seconds by name, round by round."""
    nothing = torch.empty(0, device=setting.device)
    with torch.inference_mode():
        return seconds_in_turns({name: lambda _, call=call: call() for name, call in calls.items()}, nothing, 0.0)  # type: ignore[misc]
