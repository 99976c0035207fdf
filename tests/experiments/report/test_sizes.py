"""What a file of few bits holds beside the bits that a paper counts."""

from __future__ import annotations

from typing import Any

from experiments.report.sizes import findings

MIB = 2**20
PARAMS, WEIGHTS, SCALES = 10 * MIB, 8 * MIB, MIB // 4  # made up, so that sums are round


def row(bits: int, printed: float | None = None) -> dict[str, Any]:
    """A file of 8 Mi rounded weights and 2 Mi float16 numbers, with a quarter of a MiB of scales below 16 bits."""
    size = WEIGHTS * bits // 8 + 2 * (PARAMS - WEIGHTS) + (0 if bits == 16 else SCALES)
    own = {"architecture": "M", "method": f"Baseline, {bits}-bit", "status": "done", "bits": bits, "params": PARAMS}
    return own | {"file_bytes": size, "size_reported": printed}


def content(profile: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"profile": profile, "rows": list(rows)}


def test_a_size_is_explained_by_hand() -> None:
    """At 4 bits: counted 5 MiB; 2 Mi numbers at 16 instead of 4 bits are 3 MiB more, scales 0.25: 8.25 in all."""
    said = findings(content("imagenet", row(16), row(8), row(4, printed=5.75)))
    assert said == [
        "M, Baseline, 4-bit: 10.5M parameters at 4 bits are 5.0 MiB. The file has 8.2 MiB: 3.0 MiB more because "
        "2.10M parameters outside the blocks' weights stay in float16, and 256.0 KiB for scales, zero points and header. "
        "The printed 5.75 MiB leaves out 2.5 MiB of these 3.2 MiB"
    ]
