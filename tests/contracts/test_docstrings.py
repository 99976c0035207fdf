"""Where a public method has no docstring, a protocol, a base class or its library says what it does."""

import ast
from collections.abc import Iterator

from tests.support.sources import ROOT

PACKAGE = ROOT / "lowrank_vit"
LIBRARIES = {  # methods that torch, Lightning, torchmetrics and ONNX Runtime describe
    "forward", "extra_repr", "configure_optimizers", "training_step", "validation_step", "train_dataloader", "update",
    "compute", "on_train_epoch_end", "on_fit_end", "on_validation_epoch_end", "on_before_optimizer_step", "reset",
    "on_train_batch_end", "get_next",
}  # fmt: skip


def methods() -> Iterator[tuple[str, str, str | None]]:
    """The place, the name and the docstring of every public method."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for owner in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for method in owner.body if isinstance(owner, ast.ClassDef) and owner.name[0] != "_" else ():
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{path.relative_to(ROOT)}:{owner.name}.{method.name}", method.name, ast.get_docstring(method)


def test_every_public_method_is_described_somewhere() -> None:
    found = list(methods())
    described = LIBRARIES | {name for _, name, text in found if text}
    assert len(found) > 500
    assert [place for place, name, text in found if not text and name not in described] == []
