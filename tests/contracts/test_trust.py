"""What is opened runs no code (ruff's rules for pickles, eval and shells see the rest), and an import opens no socket."""

import ast
import subprocess
import sys

import pytest

from tests.support.sources import ROOT

OPEN = ("torch.load", "trainer.fit", "trainer.validate", "trainer.test")  # Lightning's: only where a file is named


def unsafe(text: str) -> list[str]:
    """The calls of a source that would unpickle a file."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    options = {ast.unparse(call): {word.arg: ast.unparse(word.value) for word in call.keywords} for call in calls}
    opening = {c: o for c, o in options.items() if c.startswith(OPEN) and ("torch" in c or "ckpt_path" in o)}
    found = [call for call, own in opening.items() if own.get("weights_only") != "True"]
    return found + [call for call, own in options.items() if own.get("allow_pickle") == "True"]


def test_nothing_that_is_opened_is_unpickled() -> None:
    files = [
        path for package in ("lowrank_vit", "experiments", "benchmarks") for path in (ROOT / package).rglob("*.py")
    ]
    texts = [path.read_text(encoding="utf-8") for path in files]
    assert sum("torch.load(" in text for text in texts) >= 3
    assert [call for text in texts for call in unsafe(text)] == []
    for line in (
        "torch.load(x)",
        "torch.load(x, weights_only=no)",
        "trainer.fit(m, ckpt_path=x)",
        "np.load(x, allow_pickle=True)",
    ):
        assert unsafe(line) == [line]


OFFLINE = """
import socket, sys

def refuse(*arguments, **options):
    raise AssertionError(f"a socket was opened: {arguments}")

class Refused(socket.socket):
    def __init__(self, *arguments, **options):
        refuse(*arguments)

socket.socket, socket.create_connection, socket.getaddrinfo = Refused, refuse, refuse
sys.addaudithook(lambda event, arguments: refuse(event) if event in ("socket.connect", "socket.bind") else None)
import lowrank_vit
names = lowrank_vit.__all__ if sys.argv[1] == "all" else []
for name in names:
    getattr(lowrank_vit, name)
print("imported", len(names))
"""


@pytest.mark.parametrize("names", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_importing_the_package_opens_no_socket(names: str) -> None:
    """Nor does importing what is behind its public names, which is done when they are first asked for."""
    command = [sys.executable, "-c", OFFLINE, names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("imported "), done.stderr
