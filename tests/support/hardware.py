"""Where the tests compute: on the CPU, in one process unless a test says otherwise."""

from dataclasses import fields
from typing import Any

from lowrank_vit import Hardware

FIELDS = {each.name for each in fields(Hardware)}


def on_cpu(**options: Any) -> dict[str, Any]:
    """The options with those of the hardware in one record, and without a progress bar unless there is one among them."""
    hardware = {name: value for name, value in options.items() if name in FIELDS}
    rest = {name: value for name, value in options.items() if name not in FIELDS}
    return {"hardware": Hardware(**{"accelerator": "cpu", **hardware}), "progress": False, **rest}
