"""What a user is told."""

from __future__ import annotations

import pickle

from lowrank_vit import InputError


def test_the_message_is_one_line_whatever_a_library_said() -> None:
    error = InputError("timm cannot make it: expected one of\n  * (Tensor value)\n")
    assert str(error) == "timm cannot make it: expected one of * (Tensor value)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # it crosses processes
