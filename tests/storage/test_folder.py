"""Saved, loaded, and refused with one line when broken; nothing that was there is lost."""

import json
import re
from pathlib import Path

import pytest
import torch

from lowrank_vit import InputError, compress, load, save
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.runtime.files import replacing, write_json
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.quantize.weights import quantize
from lowrank_vit.storage.folder import file_bytes, load_model_args, load_report
from tests.support.cases import few
from tests.support.models import ARGUMENTS, NAMES, images, tiny


def saved(folder: Path, kind: str = "vit", recipe: str = "exact", **changes: object) -> torch.nn.Module:
    compressed, _ = compress(tiny(kind), [images(12, kind)], get_recipe(recipe).but(**changes), 0.4)
    save(compressed, folder, model_args=ARGUMENTS[kind])
    return compressed


@pytest.mark.parametrize("kind", sorted(NAMES))
def test_a_loaded_model_is_the_saved_one(kind: str, tmp_path: Path) -> None:
    compressed = saved(tmp_path / "small", kind)
    loaded = load(tmp_path / "small")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images(5, kind)), compressed(images(5, kind)))
    assert load_report(tmp_path / "small") == compressed.compression_report
    files = {"README.md", "config.json", "model.safetensors", "report.json"}
    assert {path.name for path in (tmp_path / "small").iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_saved_model_is_replaced_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a notebook's cell can be run again; a folder of anything else is never touched."""
    saved(tmp_path / "small")
    other, _ = compress(tiny(), [images(12)], "svd", 0.2)
    with pytest.raises(InputError, match="small exists already: pass overwrite=True to replace it"):
        save(other, tmp_path / "small", model_args=ARGUMENTS["vit"])
    with monkeypatch.context() as cut:
        cut.setattr("pathlib.Path.replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(InputError, match="full"):
            save(other, tmp_path / "small", model_args=ARGUMENTS["vit"], overwrite=True)
    assert load_report(tmp_path / "small")["recipe"] == "exact"
    save(other, tmp_path / "small", model_args=ARGUMENTS["vit"], overwrite=True)
    assert load_report(tmp_path / "small")["recipe"] == "svd"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="notes exists already: choose another folder"):
        save(other, tmp_path / "notes", model_args=ARGUMENTS["vit"], overwrite=True)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("z", few(COMPENSATIONS.names(), 1))
def test_every_z_survives_and_is_quantised(z: str, tmp_path: Path) -> None:
    compressed = saved(tmp_path / "small", recipe="paper", compensation=z, solver="closed_form")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small")(images(5)), compressed(images(5)))
    quantized, addition = quantize(compressed, 6)
    save(quantized, tmp_path / "six", model_args=load_model_args(tmp_path / "small"))
    loaded, report = load(tmp_path / "six"), load_report(tmp_path / "six")
    with torch.no_grad():
        assert torch.equal(loaded(images(5)), quantized(images(5)))
    kinds = ("codes_bytes", "scales_bytes", "float_bytes", "index_bytes")
    assert report["quantization"] == {**addition["quantization"], "file_bytes": file_bytes(tmp_path / "six")}
    data = (tmp_path / "six" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert sum(report["quantization"][kind] for kind in kinds) + header == len(data)
    assert report["params"] == compressed.compression_report["params"]
    again = tmp_path / "again"
    save(loaded, again, report, model_args=load_model_args(tmp_path / "six"))
    assert (again / "model.safetensors").read_bytes() == data


def interrupted(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("power cut")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"new": float("nan")})
    with pytest.raises(RuntimeError, match="power"):
        interrupted(path)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def break_config(folder: Path, **changes: object) -> None:
    """Change what config.json says; without checksums, as a folder has none that was saved before there were any."""
    config = json.loads((folder / "config.json").read_text())
    config["lowrank_vit"].pop("sha256", None)
    config["lowrank_vit"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def test_broken_folders_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load(folder)
    saved(folder)
    break_config(folder)
    weights, config = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    for junk in (weights[:1000], b"junk", b""):
        (folder / "model.safetensors").write_bytes(junk)
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
            load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    for text in ("{", "[]", '"x"', "{}"):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            load(folder)
    (folder / "config.json").write_text(config)
    break_config(folder, format=99)
    with pytest.raises(InputError, match="format 99"):
        load(folder)
    (folder / "config.json").write_text(config)
    layers = json.loads(config)["lowrank_vit"]["layers"]
    name = next(iter(layers))
    for rank in (layers[name]["rank"] + 1, -1, "x"):
        break_config(folder, layers={**layers, name: {**layers[name], "rank": rank}})
        with pytest.raises(InputError):
            load(folder)
    for key, value in {"model_args": {"patch_size": 0}, "num_classes": "x", "pretrained_cfg": 1}.items():
        (folder / "config.json").write_text(json.dumps({**json.loads(config), key: value}))
        with pytest.raises(InputError, match=r"config\.json"):
            load(folder)
    (folder / "config.json").write_text(config)
    break_config(folder, layers={"no.such": layers[name]})
    with pytest.raises(InputError, match="does not describe a model"):
        load(folder)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_an_edited_file_is_refused_by_its_checksum(tmp_path: Path) -> None:
    """Each edit would load as another model, or tell another story, without a checksum."""
    folder = tmp_path / "small"
    saved(folder, recipe="best")
    weights = (folder / "model.safetensors").read_bytes()
    for junk in (flipped(weights, len(weights) - 1), weights[:-4], b""):
        (folder / "model.safetensors").write_bytes(junk)
        with pytest.raises(InputError, match=r"model\.safetensors does not have the checksum"):
            load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = (folder / "config.json").read_text()
    scale = re.search(r'"scale": [0-9.]+', config)
    assert scale is not None
    for old, new in (
        (scale.group(), '"scale": 0.5'),
        ('"num_classes": 10', '"num_classes": 11'),
        ('"bias": true', '"bias": 1'),
    ):
        assert old in config
        (folder / "config.json").write_text(config.replace(old, new, 1))
        with pytest.raises(InputError, match=r"config\.json does not have its checksum"):
            load(folder)
    (folder / "config.json").write_text(json.dumps(json.loads(config)))  # the same values, laid out another way
    load(folder)
    report = (folder / "report.json").read_text()
    (folder / "report.json").write_text(report.replace("training-free", "full-ft", 1))
    with pytest.raises(InputError, match=r"report\.json does not have the checksum"):
        load_report(folder)
