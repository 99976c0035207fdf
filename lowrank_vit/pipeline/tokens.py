"""Fewer tokens in a dense or compressed model, as a last step."""

from __future__ import annotations

from typing import Any

from torch import nn

from lowrank_vit.modules.counting import input_size, multiply_accumulates
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens import TOKENS


def fewer_tokens(model: nn.Module, rule: str = "tome", **options: Any) -> nn.Module:
    """Return a copy of a plain ViT that hands on fewer tokens: multiply-accumulates are saved, parameters are not.

    ``rule``: ``"tome"`` (``r`` pairs merged in every block) or ``"evit"`` (``keep``, the share kept after three blocks).
    The report of a compressed model goes along, with its multiply-accumulates counted anew and the rule in ``tokens``.
    Raises ``InputError`` for an unknown rule or option, and for a model whose tokens must stay or are fewer already.
    """
    method = TOKENS.get(rule)
    try:
        made = method(**options)
    except TypeError as error:
        raise InputError(f"the token rule {rule!r} does not take these options ({error})") from None
    if any(isinstance(module, TokenBlock) for module in model.modules()):
        raise InputError("the model hands on fewer tokens already: start from the one that it was made from")
    small: Any = made(model)
    report, size = getattr(small, "compression_report", None), input_size(small)
    if report is not None and size is not None:
        macs = {**report["macs"], "compressed": multiply_accumulates(small, size)}
        small.compression_report = {**report, "macs": macs, "tokens": {"rule": rule, **plain(vars(made))}}
    return small
