"""A tiny model with low-rank layers and its images, for short fine-tunes."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.surgery import replace_module
from tests.support.models import VIT

IMAGES = 48


def tiny(drop: float = 0.2) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**VIT, drop_path_rate=drop, proj_drop_rate=drop)
    for site in find_sites(model)[::2]:
        replace_module(model, site.name, LowRankLinear(site.in_features, site.out_features, 4))
    return model


class Noisy(Dataset):
    """Images with fresh noise from torch's generator each time, as an augmentation draws it."""

    def __init__(self, images: int, noise: float) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(images, 1, 8, 8, generator=generator)
        self.labels = torch.randint(10, (images,), generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return (image + self.noise * torch.randn_like(image) if self.noise else image), self.labels[index]


class EpochSampler(Sampler[int]):
    """An order that depends on the epoch, sharded over the processes; breaks off in the middle of ``crash``."""

    def __init__(self, crash: int | None) -> None:
        self.epoch, self.crash = 0, crash
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return IMAGES // self.world

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for position, index in enumerate(order[self.rank :: self.world]):
            if self.epoch == self.crash and position == IMAGES // 2:
                raise RuntimeError("power cut")
            yield index


class TinyData(LightningDataModule):
    def __init__(
        self, workers: int = 0, noise: float = 0.1, crash: int | None = None, unlabelled: bool = False
    ) -> None:
        super().__init__()
        self.workers, self.noise, self.crash, self.unlabelled = workers, noise, crash, unlabelled

    def train_dataloader(self) -> DataLoader:
        sampler, data = EpochSampler(self.crash), Noisy(IMAGES, self.noise)
        if self.unlabelled:
            data.labels.fill_(-1)
        return DataLoader(data, batch_size=16 // sampler.world, sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        sampler, data = EpochSampler(None), Noisy(65, 0.0)
        return DataLoader(data, batch_size=8, sampler=range(sampler.rank, len(data), sampler.world))
