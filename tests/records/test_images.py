"""Images of several processes, which take turns at them."""

import pytest
import torch

from lowrank_vit import InputError
from lowrank_vit.records.images import Images, all_images
from tests.support.models import images


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_join_their_images_also_where_one_has_none(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1, 2, 5):
        data = images(count)
        told = [data[each::2] if each < count else None for each in range(2)]
        monkeypatch.setattr("lowrank_vit.records.images.gathered", lambda mine, told=told: told)
        mine = Images(data[rank::2].split(2))
        if count:
            assert torch.equal(mine.tensor(), data)
        else:
            with pytest.raises(InputError, match="there are no images"):
                mine.tensor()


def test_no_images_at_all_are_refused() -> None:
    for nothing in (images(0), [], [images(0)]):
        with pytest.raises(InputError, match="there are no images"):
            all_images(nothing)
