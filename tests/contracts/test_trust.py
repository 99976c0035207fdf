"""What is opened and what is not: no pickle, no code in a text, no network at import, no markup from data."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.sources import ROOT

PACKAGES = ("lowrank_vit", "experiments", "benchmarks")
RUN_CODE = {"eval", "exec", "compile", "__import__"}  # as plain names; module.eval() is another thing
UNPICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE = {("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system"), ("os", "popen")}
UNPICKLED_UNLESS_TOLD = {("torch", "load"), ("trainer", "fit"), ("trainer", "validate"), ("trainer", "test")}
NO_FILE = "ckpt_path"  # Lightning opens one only where this is given


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """All calls, with the last two parts of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                yield node, "", called.id
            elif isinstance(called, ast.Attribute):
                yield node, called.value.id if isinstance(called.value, ast.Name) else "", called.attr


def dangers(text: str) -> list[str]:
    """What of a source can run code that stands in a file, a line each."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in UNPICKLE]
    for call, owner, name in calls(tree):
        told = {keyword.arg: keyword.value for keyword in call.keywords}
        safe = isinstance(told.get("weights_only"), ast.Constant) and told["weights_only"].value is True
        opens = (owner, name) == ("torch", "load") or NO_FILE in told
        if (owner, name) in UNPICKLED_UNLESS_TOLD and opens and not safe:
            found.append(f"line {call.lineno}: {owner}.{name} without weights_only=True")
        if (not owner and name in RUN_CODE and isinstance(call.func, ast.Name)) or (owner, name) in UNSAFE:
            found.append(f"line {call.lineno}: {name}()")
        if name == "load" and isinstance(told.get("allow_pickle"), ast.Constant) and told["allow_pickle"].value:
            found.append(f"line {call.lineno}: allow_pickle")
        if any(key == "shell" for key in told):
            found.append(f"line {call.lineno}: a shell")
    return found


def test_nothing_that_is_opened_can_run_code() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 200
    assert sum("torch.load(" in path.read_text(encoding="utf-8") for path in files) >= 3
    found = {path.relative_to(ROOT).as_posix(): dangers(path.read_text(encoding="utf-8")) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "trainer.fit(module, ckpt_path=path)",
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "exec(text)",
        "yaml.load(file)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_what_could_run_code_is_reported(line: str) -> None:
    assert len(dangers(f"def f():\n    {line}\n")) == 1


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
