"""What every family promises of its steps: they are the whole way, and every branch adds what it is said to."""

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.step_inputs import enter, run_step


@torch.no_grad()
def check_walk(model: nn.Module, data: Tensor, outputs: Tensor) -> None:
    """Go through the steps, with what the model gives its blocks beside the stream; some windows may be padded."""
    family = family_of(model)
    steps = family.steps(model)
    given, inputs = enter(model, steps, [data[:2], data[2:]])
    x = torch.cat(list(inputs))
    for name, step in steps.items():
        after = source = x
        branches = family.branches(step)
        for branch in branches:
            source = source if branch.beside else after
            added, made = branch.with_inputs(source, **given[name])
            after, tokens = after + added, branch.tokens(added)
            torch.testing.assert_close(branch.stream(tokens, added.shape), added)
            if not branch.normed:
                there = branch.tokens(torch.ones_like(added))
                expected = branch.output_layer(made).reshape(tokens.shape) * there
                torch.testing.assert_close(tokens, expected if branch.scale is None else branch.scale * expected)
        x = run_step(step, x, given[name])
        torch.testing.assert_close(after if branches else x, x)
    torch.testing.assert_close(family.head(model, x), outputs)
