"""Table V: VMeanba on VMamba, as written, and what computes the same or more for less.

Sources   Chi et al. 2024 (arXiv 2412.16602), of which only the abstract was to be had: a speed-up of up to 1.12, less than 3
          points lost; Liu et al. 2024 (VMamba, arXiv 2401.10166)
Command   python -m experiments run table_scan
          python -m experiments run table_scan/vmamba_t --data imagefolder:IMAGES --checkpoints WEIGHTS

In our reading the paper averages the scan's inputs and the skip over channels and copies the result back (as written). The
norm over channels behind the scan annihilates it, so that the row with the skip kept computes what the row without a scan
does. Refitted: the output layer in closed form on the calibration images, without a scan, with that of the mean channel
joined behind the norm, or with the mean of the map. Refitted, then heads: all scans are left out first. Scans in its budget:
the recipe itself chooses which to leave out.
"""

from typing import Any

from experiments.tables.architectures import Architecture
from experiments.tables.rows import Row, Table

VMAMBA_T = Architecture("vmamba_t", "VMamba-T", "vmamba_tiny_s1l8", "digits_vmamba_tiny")
VMAMBA_S = Architecture("vmamba_s", "VMamba-S", "vmamba_small_s2l15", "digits_vmamba_base")
VMAMBA_B = Architecture("vmamba_b", "VMamba-B", "vmamba_base_s2l15", "digits_vmamba_conv")
VMAMBA_V0 = Architecture("vmamba_v0", "VMamba-T v0", "vanilla_vmamba_tiny", None)

METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # row: method, what replaces all scans
    "written": ("Our reading (VMeanba)", {}),
    "skip": ("Skip kept", {"skip": "channel"}),
    "dropped": ("Left out", {"mode": "left_out"}),
    "refitted": ("Left out, refitted", {"refit": "dropped"}),
    "mean": ("Mean channel behind the norm", {"refit": "mean"}),
    "pooled": ("Pooled mean behind the norm", {"refit": "pooled"}),
}


def rows(model: Architecture) -> list[Row]:
    """List the dense model, all replacements, and what ``heads`` makes of the refitted one, and of the whole one."""
    heads: dict[str, Any] = {"recipe": "heads", "reduction": 0.5}
    return [
        Row.measuring(model, "dense", "Dense", "scan", changes={"layers": 0}),
        *(
            Row.measuring(model, f"{name}-all", method, "scan", changes={"layers": "all", **changes})
            for name, (method, changes) in METHODS.items()
        ),
        Row.measuring(model, "heads-50", "Refitted, then heads", "scan", **heads),
        Row.measuring(model, "best-units-50", "Ours (heads), scans in its budget", "scan_units", **heads),
    ]


TABLE = Table(
    title="Table V: scans of one channel, and of none",
    rows=tuple(row for model in (VMAMBA_T, VMAMBA_S, VMAMBA_B, VMAMBA_V0) for row in rows(model)),
    columns=("architecture", "method", "reduction", "scans_replaced", "scans_top1", "scans_kl", "seconds", "status"),
    pictures=(),
)
