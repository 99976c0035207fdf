"""Every command and every block of Python of the guides is run, page by page, in an empty folder."""

import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from lowrank_vit.cli import main
from tests.support.sources import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path for folder in ("start", "guides") for path in (DOCS / folder).glob("*.md"))
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?(?P<indent> *)```(?P<language>sh|python)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
PROGRAM = "lowrank-vit"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every block but those that say why they are not run."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if found["reason"] is None:
            yield found["language"], textwrap.dedent(found["text"])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def exit_code(arguments: list[str]) -> object:
    """What the shell would see of a command."""
    try:
        with patch.object(sys, "argv", [PROGRAM, *arguments]):  # which reports record
            main()
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


WITH_BLOCKS = [page for page in PAGES if list(blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_a_page_can_be_followed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{name_of(page)}.md", "exec"), names)
            continue
        for program, *arguments in commands(text):
            assert program == PROGRAM, f"{name_of(page)}.md runs {program}: say why it is not run, or teach this test"
            assert exit_code(arguments) == 0, f"{name_of(page)}.md: {shlex.join([program, *arguments])}"


def test_a_block_is_skipped_only_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    skipped = "<!-- not run: slow -->\n```sh\ng\n```\n"
    page.write_text(f"```sh\na --b 'c d' \\\n  e  # f\n```\n{skipped}    ```python\n    h\n    ```\n```text\ni\n```\n")
    assert list(blocks(page)) == [("sh", "a --b 'c d' \\\n  e  # f\n"), ("python", "h\n")]
    assert list(commands("a --b 'c d' \\\n  e  # f\n")) == [["a", "--b", "c d", "e"]]
