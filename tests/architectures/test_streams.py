"""The stream of a model, block by block: the layouts of its tokens against what the modules really do."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.architectures.base import family_of, first_inputs
from tests.support.models import WALKED, model_and_images


@pytest.mark.parametrize("kind", WALKED)
def test_tokens_are_in_the_order_of_the_output_layer(kind: str) -> None:
    """What a branch adds to the stream, back in the order of its output layer, is what that layer made."""
    model, data = model_and_images(kind, 3)
    family = family_of(model)
    made: list[Tensor] = []
    shifted = branches = 0
    for name, step in family.steps(model).items():
        (x,) = first_inputs(model, step, [data])
        for branch in family.branches(step):
            branches += 1
            hook = branch.output_layer.register_forward_hook(lambda module, inputs, y: made.append(y))
            with torch.no_grad():
                added, there = branch.add(x), branch.tokens(torch.ones_like(x))[..., :1]
            hook.remove()
            tokens, scale = branch.tokens(added), 1 if branch.scale is None else branch.scale
            torch.testing.assert_close(tokens, made.pop().reshape(tokens.shape) * there * scale)
            shifted += branch.name == "attn" and any(getattr(step, "shift_size", ()))
            assert torch.equal(branch.stream(tokens, added.shape), added)
        if kind == "padded" and name.startswith("layers.0.blocks"):
            attention = family.branches(step)[0]
            assert attention.tokens(torch.ones_like(x)).shape[1] == 64 > x[0, ..., 0].numel() == 36
    assert branches >= 3
    assert bool(shifted) == (kind in ("swin", "padded"))
