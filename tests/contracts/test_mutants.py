"""The table of planted faults is up to date: every text is where it says, every test is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import TIMED_OUT, judge, run_tests
from tests.mutants.table import Fault, faults
from tests.support.sources import ROOT


def test_every_text_occurs_once_in_its_file() -> None:
    table = faults()
    assert len(table) >= 100
    assert {str(fault): fault.occurrences(ROOT) for fault in table if fault.occurrences(ROOT) != 1} == {}
    assert [str(fault) for fault in table if fault.planted(ROOT) == (ROOT / fault.file).read_text()] == []
    assert [line for line, count in Counter(map(str, table)).items() if count > 1] == []


def test_planted_faults_can_be_compiled() -> None:
    for fault in faults():
        compile(fault.planted(ROOT), fault.file, "exec")


def test_the_tests_that_should_notice_are_there() -> None:
    """Of a node id: its file, and in it the function and the class."""
    for fault in faults():
        assert fault.tests
        for test in fault.tests:
            file, *names = test.partition("[")[0].split("::")
            assert (ROOT / file).exists(), test
            assert all(
                f" {name}(" in (ROOT / file).read_text() or f"class {name}" in (ROOT / file).read_text()
                for name in names
            ), test


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "half.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "test_half.py").write_text("import half\n\n\ndef test():\n    assert half.half(4) == 2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "put", "test", "verdict"),
    [
        ("x / 2", "x * 2", "test_half.py", "dead"),
        ("x / 2", "x // 2", "test_half.py", "survived"),
        ("x / 3", "x * 2", "test_half.py", "broken"),
        ("x / 2", "x * 2", "test_gone.py", "broken"),
        ("return x / 2", "while True: pass", "test_half.py", "dead"),
    ],
)
def test_a_verdict_on_a_fault(checkout: Path, text: str, put: str, test: str, verdict: str) -> None:
    before = (checkout / "half.py").read_text()
    seconds = 3 if "while True" in put else 60  # an interpreter may take seconds to start
    assert judge(Fault("a mistake", "half.py", text, put, (test,)), checkout, seconds)[0] == verdict
    assert (checkout / "half.py").read_text() == before


def test_tests_run_in_the_copy_and_end_at_the_limit(checkout: Path) -> None:
    assert run_tests(checkout, ["test_half.py"], None)[0] == 0
    (checkout / "test_half.py").write_text("import time\n\n\ndef test():\n    time.sleep(60)\n")
    assert run_tests(checkout, ["test_half.py"], 1)[0] == TIMED_OUT
