"""Fewer tokens in a dense or compressed model, as a last step."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from torch import nn

from lowrank_vit.modules.counting import input_size, multiply_accumulates
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.pipeline.reporting import dense_report
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens import TOKENS, TokenRule


def fewer_tokens(model: nn.Module, rule: str = "tome", *, macs: float | None = None, **options: Any) -> nn.Module:
    """Return a copy of a plain ViT that hands on fewer tokens: multiply-accumulates are saved, parameters are not.

    ``rule``: ``"tome"`` (``r`` pairs merged in every block) or ``"evit"`` (``keep``, the share kept after three blocks).
    ``macs`` chooses its strength: the least that leaves this share of the dense model's multiply-accumulates.
    The copy has a report, of the model as it was, with its multiply-accumulates counted anew and the rule in ``tokens``.
    Raises ``InputError`` for an unknown rule or option, a share that the rule cannot reach, and for a model whose tokens
    must stay or are fewer already.
    """
    method = TOKENS.get(rule)
    try:
        made = method(**options)
    except TypeError as error:
        raise InputError(f"the token rule {rule!r} does not take these options ({error})") from None
    if any(isinstance(module, TokenBlock) for module in model.modules()):
        raise InputError("the model hands on fewer tokens already: start from the one that it was made from")
    chosen = made if macs is None else _within(model, made, rule, macs)
    small: Any = chosen(model)
    report: Any = getattr(model, "compression_report", None) or dense_report(model)
    if (size := input_size(model)) is not None:
        report = {**report, "macs": {**report["macs"], "compressed": multiply_accumulates(small, size)}}
    small.compression_report = {**report, "tokens": {"rule": rule, **plain(vars(chosen))}}
    return small


def _within(model: nn.Module, rule: TokenRule, name: str, share: float) -> TokenRule:
    """Return the rule at its least strength that leaves ``share`` of the dense model's multiply-accumulates."""
    size = input_size(model)
    rule(model)  # refuses what must keep its tokens
    if size is None:
        raise InputError("the model does not say the size of its images: give the rule's own option instead of macs")
    report: Any = getattr(model, "compression_report", None)
    dense = multiply_accumulates(model, size) if report is None else report["macs"]["dense"]
    strengths = rule.strengths(int(model.patch_embed.num_patches))  # type: ignore[union-attr, arg-type]
    place = bisect_left(strengths, -share * dense, key=lambda each: -multiply_accumulates(each(model), size))
    if place == len(strengths) or share <= 0:
        least = multiply_accumulates(strengths[-1](model), size) / dense
        raise InputError(f"macs={share:g} is out of reach: {name} on this model leaves a share of {least:.4f} or more")
    return strengths[place]
