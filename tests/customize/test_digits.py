"""The small diffusion model: what it is trained on, that it is cached, and its bar."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.measures.customize import BAR, old_digits
from lowrank_vit.customize import digits
from lowrank_vit.customize.digits import (
    INVERTED,
    NORMAL,
    OLD,
    RECIPE,
    VOCABULARY,
    Judge,
    Recipe,
    digit_images,
    digits_model,
)
from lowrank_vit.models import load_model
from lowrank_vit.runtime.files import cache_folder
from tests.support.diffusion import outputs

SHORT = Recipe(steps=3, batch_size=4)


def test_training_is_cached_and_the_seed_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path))
    first = outputs(digits_model(0, SHORT), ["normal 3"])
    assert not torch.equal(first, outputs(digits_model(1, SHORT), ["normal 3"]))
    (file,) = (path for path in (tmp_path / "diffusion").glob("*.safetensors") if "seed0" in path.name)
    with monkeypatch.context() as patched:
        patched.setattr(digits, "fit", None)  # it is read, not trained again
        assert torch.equal(outputs(digits_model(0, SHORT), ["normal 3"]), first)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="is damaged and is trained again"):
        again = digits_model(0, SHORT)
    assert torch.equal(outputs(again, ["normal 3"]), first)
    assert not any(parameter.requires_grad for part in again.modules() for parameter in part.parameters())


def test_words_say_what_the_images_show() -> None:
    model, generator = digits.untrained(), torch.Generator().manual_seed(0)
    scans, labels = digit_images(OLD)
    words = model.text.tokens([str(label) for label in labels.tolist()])[:, 0]
    images, tokens = digits._examples(model, scans, words, RECIPE, generator)
    said = [[VOCABULARY[token] for token in prompt] for prompt in tokens.tolist()]
    for scan, image, (style, thing, last), label in zip(scans, images, said, labels.tolist(), strict=True):
        assert last == ""
        if thing == "":
            assert style == ""
            continue
        assert thing in (str(label), "digit")
        assert torch.equal(image, {NORMAL: scan, INVERTED: -scan}[style])
    shares = [
        sum(prompt[place] == word for prompt in said) / len(said)
        for place, word in ((0, ""), (0, INVERTED), (1, "digit"))
    ]
    assert shares == pytest.approx([0.1, 0.45, 0.09], abs=0.04)


def cached() -> bool:
    return any((cache_folder() / "diffusion").glob("digits-seed0-*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(
    not cached(), reason="the small diffusion model is not trained: python -m experiments run table_customize"
)
def test_the_base_draws_old_digits_well_and_no_new_one() -> None:
    judge = Judge(load_model("digits_deit_small", None))
    assert old_digits(digits_model(), judge)["accuracy"] >= BAR
