"""Folders to the hub and back: the hub's own client on a cache on this disk, its network calls stood in for."""

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from lowrank_vit import InputError, analyse, load, push_to_hub, save
from lowrank_vit.cli import main
from lowrank_vit.storage import hub
from lowrank_vit.storage.contents import CARD, CONFIG, NESTED, REPORT, WEIGHTS
from tests.support.models import ARGUMENTS, images, tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def uploads(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was pushed; it lies in the cache then, as if it had been fetched."""
    calls: list[dict[str, Any]] = []

    def create(self: object, repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return f"https://hub/{repo_id}"

    def upload(self: object, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **options: Any) -> None:
        calls.append({"repo_id": repo_id, **options})
        repository = cache / f"models--{repo_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        (repository / "snapshots" / COMMIT).mkdir(parents=True)
        for file in folder_path.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, repository / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "hub_reachable", lambda: not constants.HF_HUB_OFFLINE or len(calls) < 2)
    return calls


def nested(folder: Path) -> torch.nn.Module:
    analysis = analyse(tiny(), [images(12)], "exact")
    model, _ = analysis.compress(0.3)
    save(model, folder, model_args=ARGUMENTS["vit"], nested=analysis)
    return model


def test_a_folder_goes_to_the_hub_and_comes_back(
    tmp_path: Path, cache: Path, uploads: list, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nested(tmp_path / "small")
    (tmp_path / "small" / "secret.txt").write_text("not a file of the model")
    main(["push", str(tmp_path / "small"), "somebody/small", "--private"])
    assert "pushed to https://hub/somebody/small" in capsys.readouterr().out
    assert uploads[0] == {"repo_id": "somebody/small", "private": True, "exist_ok": True}
    (snapshot,) = (cache / "models--somebody--small" / "snapshots").iterdir()
    assert sorted(file.name for file in snapshot.iterdir()) == sorted([CARD, CONFIG, REPORT, WEIGHTS, NESTED])
    for prefix in ("hf_hub:", "hf-hub:"):
        for revision in ("", "@main", f"@{COMMIT}"):
            with torch.no_grad():
                assert torch.equal(load(f"{prefix}somebody/small{revision}")(images(3)), model(images(3)))
    smaller = load("hf_hub:somebody/small", reduction=0.6)
    assert smaller.compression_report["params"]["reduction"] > 0.6
    main(["shrink", "hf_hub:somebody/small", "--reduction", "0.6", "--out", str(tmp_path / "smaller")])
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "smaller")(images(3)), smaller(images(3)))
    (snapshot / NESTED).unlink()  # as it is fetched for all but other sizes
    capsys.readouterr()
    main(["inspect", "hf_hub:somebody/small"])
    assert "nested" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"nested\.safetensors is missing"):
        push_to_hub(snapshot, "somebody/again")
