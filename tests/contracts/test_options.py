"""No message recommends an option that the command lacks, and what several commands take has one name."""

import argparse
import ast
import importlib
import re
from pathlib import Path

import lowrank_vit
from lowrank_vit.cli.command_line import VERBS, Verbs

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z0-9](?![\w-]*=)")
ELSEWHERE = re.compile(r"`[^`]*`")  # a command in full, perhaps another one
PACKAGE = Path(lowrank_vit.__file__).parent
OTHERS = {  # of other programs, or of all
    "--nproc-per-node", "--ntasks", "--num-nodes", "--error-unmatch", "--porcelain", "--help", "--checkpoints", "--verbose",
    "--version", "--int",
}  # fmt: skip


class One:
    """Take the verbs one by one."""

    def __init__(self) -> None:
        self.made: dict[str, argparse.ArgumentParser] = {}
        self.verbs = Verbs(argparse.ArgumentParser())

    def add_parser(self, name: str, **options: str) -> argparse.ArgumentParser:
        self.made[name] = self.verbs.add_parser(name, **options)  # type: ignore[arg-type]
        return self.made[name]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def parsers() -> dict[str, tuple[argparse.ArgumentParser, Path]]:
    found = {}
    for verb in (importlib.import_module(f"lowrank_vit.cli.verbs.{name}") for name in VERBS):
        one = One()
        verb.add_parser(one)
        for name, parser in one.made.items():
            found[name] = parser, Path(str(verb.__file__))
    return found


def mentioned(path: Path) -> set[str]:
    """The options in the text of a file, without docstrings and commands in full."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]
    return {option for text in texts for option in OPTION.findall(ELSEWHERE.sub("", text))}


def test_a_verb_speaks_of_its_own_options() -> None:
    found = parsers()
    for verb, (_, path) in found.items():
        own = {option for other, where in found.values() if where == path for option in options_of(other)}
        assert mentioned(path) - own <= OTHERS, verb


def test_no_message_speaks_of_an_option_that_no_verb_has() -> None:
    known = {option for parser, _ in parsers().values() for option in options_of(parser)} | OTHERS
    assert len(known) > 60
    unknown = {str(path.relative_to(PACKAGE)): mentioned(path) - known for path in PACKAGE.rglob("*.py")}
    assert {path: options for path, options in unknown.items() if options} == {}
