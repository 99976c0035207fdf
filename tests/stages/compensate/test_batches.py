import itertools

import pytest
import torch.distributed as dist

from lowrank_vit.stages.compensate.inputs import SeededBatches


def batches_of(count, batch_size, steps, seed):
    return list(SeededBatches(count, batch_size, steps, seed, lambda: 0))


def test_every_pass_sees_every_image_once_in_its_own_order():
    batches = batches_of(12, 4, 9, 0)
    assert [len(batch) for batch in batches] == [4] * 9
    passes = [list(itertools.chain(*batches[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(12)) for order in passes)
    assert passes[0] != passes[1] != passes[2] != list(range(12))


def test_a_run_goes_on_where_it_stopped():
    whole, resumed = batches_of(12, 4, 10, 3), SeededBatches(12, 4, 10, 3, lambda: 7)
    assert list(resumed) == whole[7:]
    assert len(resumed) == 10


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(monkeypatch, world):
    whole = batches_of(20, 8, 6, 1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(batches_of(20, 8, 6, 1))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
