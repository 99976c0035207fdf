"""What a file of few bits holds beside the bits that a paper counts."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.report.sizes import findings, rounded_weights
from experiments.tables.catalogue import find

MIB = 2**20
PARAMS, WEIGHTS, SCALES = 10 * MIB, 8 * MIB, MIB // 4  # made up, so that sums are round


def row(bits: int, printed: float | None = None) -> dict[str, Any]:
    """A file of 8 Mi rounded weights and 2 Mi float16 numbers, with a quarter of a MiB of scales below 16 bits."""
    size = WEIGHTS * bits // 8 + 2 * (PARAMS - WEIGHTS) + (0 if bits == 16 else SCALES)
    own = {"architecture": "M", "method": f"Baseline, {bits}-bit", "status": "done", "bits": bits, "params": PARAMS}
    return own | {"file_bytes": size, "size_reported": printed}


def content(profile: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"profile": profile, "rows": list(rows)}


def test_the_rounded_weights_follow_from_two_files() -> None:
    assert rounded_weights([row(16), row(8), row(6), row(4)]) == WEIGHTS
    assert rounded_weights([row(16), row(8)]) is None


def test_a_size_is_explained_by_hand() -> None:
    """At 4 bits: counted 5 MiB; 2 Mi numbers at 16 instead of 4 bits are 3 MiB more, scales 0.25: 8.25 in all."""
    said = findings(content("imagenet", row(16), row(8), row(4, printed=5.75)))
    assert said == [
        "M, Baseline, 4-bit: 10.5M parameters at 4 bits are 5.0 MiB. The file has 8.2 MiB: 3.0 MiB more because "
        "2.10M parameters outside the blocks' weights stay in float16, and 256.0 KiB for scales, zero points and header. "
        "The printed 5.75 MiB leaves out 2.5 MiB of these 3.2 MiB"
    ]


def test_one_file_of_each_model_is_explained() -> None:
    """It is the one whose size is printed, else the one of fewest bits, whatever the order of the rows."""
    printed, unprinted = content("imagenet", row(16), row(8, 9.0), row(4)), content("imagenet", row(4), row(8), row(6))
    assert [text.split(":")[0] for text in findings(printed)] == ["M, Baseline, 8-bit"]
    assert [text.split(":")[0] for text in findings(unprinted)] == ["M, Baseline, 4-bit"]
    by_gptq = {**row(4), "method": "Baseline by GPTQ, 4-bit"}
    assert len(findings(content("imagenet", row(4), row(8), by_gptq))) == 1
    other = {**row(2), "architecture": "N"}, {**row(3), "architecture": "N"}
    assert len(findings(content("imagenet", row(4), row(8), *other))) == 2


def test_a_printed_size_is_not_compared_with_a_stand_in() -> None:
    assert all("printed" not in text for text in findings(content("embedded", row(8), row(4, printed=5.75))))


@pytest.mark.parametrize("rows", [(), (row(16),), (row(16), row(8))])
def test_nothing_is_claimed_of_too_few_files(rows: tuple[dict[str, Any], ...]) -> None:
    assert findings(content("imagenet", *rows)) == []


def test_table_4_shows_the_count() -> None:
    table, _ = find("table4")
    assert table.findings == "sizes"
    assert "size_counted" in table.columns
