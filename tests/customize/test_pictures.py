"""Images from files and to a grid; words that a table does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowrank_vit.customize.sample import load_images, save_grid
from lowrank_vit.customize.text_to_image import WordTable
from lowrank_vit.runtime.errors import InputError


def test_images_are_cut_in_the_middle_and_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[:, 2:6] = 255  # the square in the middle
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.T).save(tmp_path / "b.PNG")
    images = load_images(tmp_path, 1, 4)
    assert torch.equal(images, torch.ones(2, 1, 4, 4))
    assert load_images(tmp_path, 3, 2).shape == (2, 3, 2, 2)


def test_no_images_and_broken_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="holds no image files"):
        load_images(tmp_path, 1, 8)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot read the image .*a\.png"):
        load_images(tmp_path, 1, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_rows_below_one_another(channels: int, tmp_path: Path) -> None:
    first, second = torch.full((2, channels, 2, 3), -1.0), torch.full((2, channels, 2, 3), 1.0)
    second[0] = 0
    save_grid([first, second], tmp_path / "grid.png", enlarged=2)
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert grid.shape == (8, 12)
    assert (grid[:4] == 0).all()
    assert (grid[4:, :6] == 128).all()
    assert (grid[4:, 6:] == 255).all()


def test_unknown_words_and_long_prompts_are_refused() -> None:
    table = WordTable(["", "normal", "digit"], 4, 2)
    assert table.tokens(["digit", "V* normal", ""], "V*").tolist() == [[2, 0], [3, 1], [0, 0]]
    with pytest.raises(InputError, match="did you mean 'normal'"):
        table.tokens(["norml"])
    with pytest.raises(InputError, match="does not know 'V\\*'"):
        table.tokens(["V*"])
    with pytest.raises(InputError, match="has 3 words: the model takes 2"):
        table.tokens(["digit digit digit"])
