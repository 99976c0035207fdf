import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lowrank_vit.data import ImageData, open_source
from lowrank_vit.data.classes import imagenet_wnids
from lowrank_vit.data.images import to_channels
from lowrank_vit.errors import InputError

CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.9,
    "crop_mode": "center",
}
GREY = {**CONFIG, "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
TENCH, TOILET_PAPER = "n01440764", "n15075141"  # the first and the last of ImageNet-1k


def picture(value: int, size: int = 20) -> Image.Image:
    pixels = np.random.default_rng(value).integers(0, 256, (size, size + value % 3, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def write(folder: Path, *values: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        picture(value).save(folder / f"{value:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine training images of three classes, five for validation."""
    for split, counts in (("train", (2, 3, 4)), ("validation", (1, 2, 2))):
        for rank, count in enumerate(counts):
            first = 100 * (split == "validation") + 10 * rank
            write(tmp_path / split / "abc"[rank], *range(first, first + count))
    return tmp_path


def data(folder: Path | str, config: dict[str, Any] = CONFIG, **options: Any) -> ImageData:
    spec = folder if isinstance(folder, str) else f"imagefolder:{folder}"
    return ImageData(spec, config, **{"workers": 0, "batch_size": 4, "calibration_samples": 6, **options})


def labels(loader: DataLoader) -> list[int]:
    return [label for _, batch in loader for label in batch.tolist()]


def images(loader: DataLoader) -> torch.Tensor:
    return torch.cat([batch for batch, _ in loader])


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: world)

    return become


# --- labels


def test_a_wnid_is_labelled_by_its_place_in_imagenet(tmp_path: Path) -> None:
    write(tmp_path / "train" / TENCH, 1)
    write(tmp_path / "train" / TOILET_PAPER, 2)
    write(tmp_path / "val" / TOILET_PAPER, 3)
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.num_classes == 1000
    assert list(source.split("train").labels) == [0, 999]
    assert list(source.split("validation").labels) == [999]
    assert source.split("validation")[0][1] == 999


def test_the_wnids_are_the_sorted_thousand() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert list(wnids) == sorted(wnids)
    assert wnids[TENCH] == 0
    assert wnids[TOILET_PAPER] == 999


def test_other_classes_are_ranked_over_both_splits(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat", 1)
    write(tmp_path / "train" / "emu", 2)
    write(tmp_path / "validation" / "dog", 3)
    write(tmp_path / "validation" / "emu", 4)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.num_classes == 3
    assert list(source.split("train").labels) == [0, 2]
    assert list(source.split("validation").labels) == [1, 2]


def test_a_stranger_among_wnids_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "train" / TENCH, 1)
    write(tmp_path / "train" / "extra", 2)
    with pytest.warns(UserWarning, match="'extra' is no wnid"):
        assert open_source(f"imagefolder:{tmp_path}").num_classes == 2


@pytest.mark.real_data
def test_real_sample_labels(real_data: Path) -> None:
    source = open_source(f"imagefolder:{real_data}/imagenet-samples")
    assert list(source.split("train").labels) == list(range(1000))
    validation = source.split("validation")
    assert len(validation) == 1000
    assert len(set(validation.labels)) == 430
    assert max(validation.labels) > 430  # a rank among the folders present would stay below


@pytest.mark.real_data
def test_deit_tiny_knows_the_real_images(real_data: Path) -> None:
    from lowrank_vit.models import load_model

    model = load_model("deit_tiny_patch16_224", real_data / "weights" / "deit_tiny_patch16_224.safetensors")
    config = timm.data.resolve_model_data_config(model)
    loader = data(f"imagefolder:{real_data}/imagenet-samples", config, limit=24).val_dataloader()
    with torch.inference_mode():
        hits = sum((model(batch).argmax(1) == label).sum().item() for batch, label in loader)
    assert hits >= 16  # 83.7% of the thousand


# --- calibration


def test_the_calibration_subset_is_reproducible(folder: Path) -> None:
    first, second, other = data(folder), data(folder), data(folder, seed=1)
    assert first.calibration_record == second.calibration_record
    assert first.calibration_record["samples"] == 6
    assert first.calibration_record["source"] == f"imagefolder:{folder}"
    assert first.calibration_record["indices_sha256"] != other.calibration_record["indices_sha256"]
    json.dumps(first.calibration_record)
    tensor = first.calibration_tensor()
    assert tensor.shape == (6, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.equal(images(second.calibration_dataloader()))
    assert tensor.equal(images(first.calibration_dataloader()))  # and again


def test_a_smaller_calibration_is_a_prefix(folder: Path) -> None:
    assert data(folder, calibration_samples=3).calibration_indices == data(folder).calibration_indices[:3]


def test_known_digits_subset() -> None:
    digits = ImageData("digits", GREY, calibration_samples=4)
    assert digits.calibration_indices == [
        1268,
        85,
        896,
        1262,
    ]  # in every version: results name their images by the hash
    expected = hashlib.sha256(np.array([1268, 85, 896, 1262], dtype="<i8").tobytes()).hexdigest()
    assert digits.calibration_record == {"source": "digits", "indices_sha256": expected, "samples": 4}


def test_the_fingerprint_follows_content_transform_and_draw(folder: Path, tmp_path_factory: Any) -> None:
    reference = data(folder).calibration_fingerprint
    copy = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(copy)
    assert data(copy, batch_size=2).calibration_fingerprint == reference
    assert data(copy, {**CONFIG, "crop_pct": 1.0}).calibration_fingerprint != reference
    assert data(copy, seed=1).calibration_fingerprint != reference
    chosen = data(copy).source.split("train").files[data(copy).calibration_indices[0]]
    picture(99).save(chosen)
    assert data(copy).calibration_fingerprint != reference


def test_stratified_calibration_is_balanced(folder: Path) -> None:
    assert sorted(labels(data(folder, stratified=True).calibration_dataloader())) == [0, 0, 1, 1, 2, 2]
    seven = data(folder, stratified=True, calibration_samples=8)
    assert sorted(labels(seven.calibration_dataloader())) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_calibration_on_the_evaluation_split_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="refused") as error:
        data(folder, calibration_split="validation")
    one_line(error)


def test_one_folder_for_both_splits_is_refused(folder: Path) -> None:
    for file in sorted((folder / "validation").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (folder / "validation").rmdir()
    (folder / "validation").symlink_to(folder / "train")
    with pytest.raises(InputError, match="same folder"):
        open_source(f"imagefolder:{folder}")


def test_more_samples_than_there_are(folder: Path) -> None:
    many = data(folder, calibration_samples=1024)
    with pytest.warns(UserWarning, match="all of them instead of 1024"):
        assert many.calibration_record["samples"] == 9


@pytest.mark.parametrize("name", ["batch_size", "calibration_samples", "held_out_samples", "limit"])
def test_counts_below_one_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        data(folder, **{name: 0})


def test_unlabelled_images_calibrate_but_do_not_evaluate(tmp_path: Path) -> None:
    write(tmp_path / "train", *range(7))
    write(tmp_path / "validation", 50, 51)
    loose = data(tmp_path)
    assert loose.num_classes is None
    assert labels(loose.calibration_dataloader()) == [-1] * 6
    assert labels(loose.held_out_dataloader()) == [-1] * 2
    for loader, purpose in ((loose.val_dataloader, "evaluation"), (loose.train_dataloader, "fine-tuning")):
        with pytest.raises(InputError, match=f"which {purpose} needs") as error:
            loader()
        one_line(error)
    with pytest.raises(InputError, match="labels"):
        data(tmp_path, stratified=True).calibration_dataloader()


# --- loaders


def test_evaluation_sees_all_or_a_seeded_part(folder: Path) -> None:
    assert labels(data(folder).val_dataloader()) == [0, 1, 1, 2, 2]
    three = data(folder, limit=3)
    assert len(labels(three.val_dataloader())) == 3
    assert images(three.val_dataloader()).equal(images(data(folder, limit=3).val_dataloader()))
    assert len(labels(data(folder, limit=99).val_dataloader())) == 5


def test_the_evaluation_transform_is_timms(folder: Path) -> None:
    loaded = images(data(folder).val_dataloader())
    source = open_source(f"imagefolder:{folder}").split("validation")
    transform = timm.data.create_transform(**CONFIG, is_training=False)
    assert loaded.equal(torch.stack([transform(source[index][0]) for index in range(len(source))]))


def test_training_is_resumed_in_the_same_order(folder: Path) -> None:
    def epoch(number: int, workers: int = 0, **options: Any) -> torch.Tensor:
        loader = data(folder, workers=workers, **options).train_dataloader()
        loader.sampler.set_epoch(number)
        return images(loader)

    torch.manual_seed(5)
    first = epoch(2)
    torch.manual_seed(6)
    assert first.shape == (9, 3, 16, 16)
    assert epoch(2).equal(first)
    assert epoch(2, workers=2).equal(first)  # the augmentation too, whatever the workers
    assert not epoch(3).equal(first)
    assert not epoch(2, seed=1).equal(first)
    assert not epoch(2, augment=False).equal(first)


def test_loading_leaves_the_global_randomness_alone(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for loader in (data(folder).train_dataloader(), data(folder).val_dataloader()):
        images(loader)
    assert torch.rand(3).equal(expected)


def test_digits_are_neither_mirrored_nor_cropped() -> None:
    digits = ImageData("digits", GREY, batch_size=2000)
    (train, target), *_ = digits.train_dataloader()
    order = [draw.position for draw in digits.train_dataloader().sampler]
    split = digits.source.split("train")
    plain = torch.stack([torch.from_numpy(np.array(split[index][0])) for index in order])
    assert train.equal((plain.float() / 255 - 0.5).div(0.5).unsqueeze(1))
    assert target.tolist() == [split.labels[index] for index in order]


def test_the_digits_split_is_stratified() -> None:
    source = open_source("digits")
    train, validation = source.split("train"), source.split("validation")
    assert (len(train), len(validation), source.num_classes) == (1297, 500, 10)
    assert np.bincount(validation.labels).min() >= 48
    contents = [{split.content(index) for index in range(len(split))} for split in (train, validation)]
    assert not contents[0] & contents[1]


def test_digits_in_colour() -> None:
    batch, _ = next(iter(ImageData("digits", CONFIG, batch_size=3).val_dataloader()))
    assert batch.shape == (3, 3, 16, 16)
    assert batch[:, 0].equal(batch[:, 2])


@pytest.mark.parametrize("name", ["val_dataloader", "calibration_dataloader", "held_out_dataloader"])
def test_processes_share_the_images_without_padding(folder: Path, as_rank: Callable[..., None], name: str) -> None:
    alone = images(getattr(data(folder, calibration_samples=7), name)())
    shares = []
    for rank in range(2):
        as_rank(rank, 2)
        shares.append(images(getattr(data(folder, calibration_samples=7), name)()))
    assert sum(map(len, shares)) == len(alone)
    assert len(alone) % 2 == 1
    for rank, share in enumerate(shares):
        assert share.equal(alone[rank::2])


def test_training_shares_are_of_one_size(folder: Path, as_rank: Callable[..., None]) -> None:
    shares = []
    for rank in range(2):
        as_rank(rank, 2)
        sampler = data(folder).train_dataloader().sampler
        shares.append([draw.position for draw in sampler])
        assert len(sampler) == len(shares[-1]) == 5
    assert set(shares[0] + shares[1]) == set(range(9))


def test_the_calibration_tensor_is_whole_on_every_process(folder: Path, as_rank: Callable[..., None]) -> None:
    whole = data(folder).calibration_tensor()
    as_rank(1, 2)
    assert data(folder).calibration_tensor().equal(whole)


def test_spawned_workers(folder: Path) -> None:
    loader = data(folder).val_dataloader()
    pickle.loads(pickle.dumps(data(folder)))
    spawned = DataLoader(loader.dataset, 5, num_workers=1, multiprocessing_context="spawn")
    assert images(spawned).equal(images(loader))


# --- tables


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})

    def rows(first: int, count: int) -> datasets.Dataset:
        found = {"image": [picture(first + i) for i in range(count)], "label": [i % 3 for i in range(count)]}
        return datasets.Dataset.from_dict(found, features=features)

    return datasets.DatasetDict({"train": rows(0, 7), "validation": rows(100, 4)})


def same_images(source: Any, first: int = 0) -> bool:
    split = source.split("train")
    return all(np.array_equal(split[i][0], picture(first + i)) for i in range(len(split)))


@pytest.mark.parametrize("nested", ["", "data"])
def test_parquet_round_trip(tables: Any, tmp_path: Path, nested: str) -> None:
    where = tmp_path / "table" / nested
    where.mkdir(parents=True)
    tables["train"].select(range(4)).to_parquet(where / "train-00000-of-00002.parquet")
    tables["train"].select(range(4, 7)).to_parquet(where / "train-00001-of-00002.parquet")
    tables["validation"].to_parquet(where / "test-00000-of-00001.parquet")
    spec = f"parquet:{tmp_path / 'table'}"
    source = open_source(spec)
    assert source.num_classes == 3
    assert list(source.split("train").labels) == [0, 1, 2, 0, 1, 2, 0]
    assert len(source.split("validation")) == 4
    assert same_images(source)
    assert data(spec).calibration_tensor().shape == (6, 3, 16, 16)
    assert data(spec).calibration_fingerprint == data(spec).calibration_fingerprint
    pickle.loads(pickle.dumps(data(spec).val_dataloader().dataset))


def test_arrow_round_trip(tables: Any, tmp_path: Path) -> None:
    tables.save_to_disk(str(tmp_path / "saved"))
    source = open_source(f"arrow:{tmp_path / 'saved'}")
    assert same_images(source)
    assert list(source.split("validation").labels) == [0, 1, 2, 0]


def test_tables_by_wnid_by_name_and_without_labels(tables: Any, tmp_path: Path) -> None:
    import datasets

    def opened(table: datasets.Dataset, folder: str) -> Any:
        datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / folder))
        return open_source(f"arrow:{tmp_path / folder}")

    train = tables["train"].select(range(2))
    bare = train.remove_columns("label")
    wnids = train.cast_column("label", datasets.ClassLabel(names=[TOILET_PAPER, TENCH]))
    assert list(opened(wnids, "wnids").split("train").labels) == [999, 0]
    assert list(opened(bare.add_column("label", ["dog", "cat"]), "names").split("train").labels) == [1, 0]
    unlabelled = opened(bare, "bare")
    assert unlabelled.num_classes is None
    assert list(unlabelled.split("train").labels) == [-1, -1]
    with pytest.raises(InputError, match="no validation split"):
        unlabelled.split("validation")


@pytest.mark.real_data
def test_real_cifar(real_data: Path) -> None:
    if not (real_data / "cifar10").is_dir():
        pytest.skip(f"{real_data} has no cifar10")
    source = open_source(f"parquet:{real_data}/cifar10")
    assert (len(source.split("train")), len(source.split("validation")), source.num_classes) == (50_000, 10_000, 10)
    assert source.split("validation")[3][0].size == (32, 32)


# --- image formats


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert np.array_equal(to_channels(deep, 1), [[0, 128, 255]])
    assert np.array_equal(to_channels(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), 1), [[0, 128, 255]])
    assert np.array_equal(to_channels(Image.fromarray(np.array([[0, 7, 255]], np.int32)), 1), [[0, 7, 255]])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(mode: str, channels: int) -> None:
    result = to_channels(Image.new(mode, (5, 4)), channels)
    assert result.mode == {1: "L", 3: "RGB"}[channels]
    assert result.size == (5, 4)


def test_transparent_becomes_white() -> None:
    assert to_channels(Image.new("RGBA", (1, 1), (0, 0, 0, 0)), 3).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    upright = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    turned = to_channels(Image.open(file), 1)
    assert np.array_equal(turned, np.rot90(np.array(upright), -1))


# --- bad input


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("digits:x", "takes no path"),
        ("imagefolder:", "write imagefolder:PATH"),
        ("imagefolder:{}/nowhere", "no folder"),
        ("imagefolder:{}", "neither train/ nor validation/"),
        ("parquet:{}/nowhere", "no folder"),
        ("parquet:{}", "no train*.parquet"),
        ("arrow:{}/nowhere", "no folder"),
        ("arrow:{}", "cannot be read"),
    ],
)
def test_bad_specs(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        open_source(spec.format(tmp_path))
    assert message in one_line(error)


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no images in .*train; expected") as error:
        open_source(f"imagefolder:{tmp_path}")
    one_line(error)


@pytest.mark.parametrize("label", [[1], {"a": 1}, b"x", 1.5])
def test_labels_that_are_none(tmp_path: Path, tables: Any, label: object) -> None:
    table = tables["train"].select(range(2)).remove_columns("label")
    table.add_column("label", [label, label]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match="a number or a class name, not "):
        open_source(f"parquet:{tmp_path}")


@pytest.mark.parametrize(
    "cell",
    [
        None,
        {"bytes": b"", "path": None},
        {"bytes": b"junk", "path": None},
        {"bytes": None, "path": "/nowhere"},
        {"bytes": None, "path": "."},
        {"bytes": None, "path": "a\0b"},
    ],
    ids=str,
)
def test_a_row_without_an_image_is_named(tmp_path: Path, tables: Any, cell: dict[str, Any] | None) -> None:
    import datasets

    whole = tables["train"].cast_column("image", datasets.Image(decode=False))[0]["image"]
    rows = {"image": [{"bytes": whole["bytes"], "path": None}, cell], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    split = open_source(f"parquet:{tmp_path}").train
    assert split is not None
    assert split[0][1] == 0
    with pytest.raises(InputError, match="row 1 of train"):
        split[1]


def test_a_junk_parquet_file(tmp_path: Path, tables: Any) -> None:
    (tmp_path / "train.parquet").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read") as error:
        open_source(f"parquet:{tmp_path}")
    one_line(error)


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank_vit.data.tables.hub_reachable", lambda: False)
    with pytest.raises(InputError, match="hub cannot be reached") as error:
        open_source("hf:ILSVRC/imagenet-1k")
    one_line(error)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"junk", "truncated"])
def test_a_broken_image_is_named(folder: Path, workers: int, content: bytes | str) -> None:
    file = folder / "validation" / "b" / "110.png"
    file.write_bytes(file.read_bytes()[:200] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"110\.png") as error:
        labels(data(folder, workers=workers).val_dataloader())
    assert one_line(error).startswith("cannot read the image")


@pytest.mark.parametrize("size", [None, (4, 8, 8), (8, 8)])
def test_a_data_config_for_other_channels(folder: Path, size: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError, match="input_size"):
        data(folder, {**CONFIG, "input_size": size})


def test_loose_images_beside_classes_are_warned_of(folder: Path) -> None:
    write(folder / "train", 77)
    with pytest.warns(UserWarning, match="left out"):
        assert len(open_source(f"imagefolder:{folder}").split("train")) == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source("digits")
