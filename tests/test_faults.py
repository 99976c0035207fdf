"""The planted faults are of the code as it is, and a verdict is that of the test."""

from pathlib import Path

import pytest

from tests.faults import FAULTS, noticed, place_of
from tests.support.sources import ROOT


def test_every_text_is_there_once_and_every_test_is_there() -> None:
    for test, faults in FAULTS.items():
        assert (ROOT / "tests" / test).is_file(), test
        for name, text, mistake in faults:
            assert mistake != text
            assert place_of(ROOT, name, text).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("mistake", "dead"), [("x * 2", True), ("x // 2", False)])
def test_a_verdict(tmp_path: Path, mistake: str, dead: bool) -> None:
    (tmp_path / "lowrank_vit").mkdir()
    (tmp_path / "lowrank_vit" / "__init__.py").touch()  # or the installed package goes before it
    (tmp_path / "lowrank_vit" / "half.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_half.py").write_text(
        "from lowrank_vit import half\n\n\ndef test():\n    assert half.half(4) == 2\n"
    )
    assert noticed(tmp_path, "test_half.py", ("half.py", "x / 2", mistake)) == dead
    assert (tmp_path / "lowrank_vit" / "half.py").read_text() == "def half(x):\n    return x / 2\n"
