"""The commands as a user types them: results on the standard output, a mistake is one line and exit code 2."""

import json
from pathlib import Path

import pytest

from lowrank_vit import compress, save
from lowrank_vit.cli import main
from lowrank_vit.models import load_model
from lowrank_vit.stages.training.distill import Distillation
from tests.support.commands import COMPRESS, STANDIN, json_of, refused
from tests.support.models import images
from tests.support.power_cuts import PowerCutError, interrupt

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("recipe", "layer"), [("exact", "blocks.0.attn.qkv"), ("best", "blocks.0.attn ")])
def test_compress_inspect_evaluate(recipe: str, layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    main([*COMPRESS, "--recipe", recipe, "--out", str(out)])
    assert f"saved to {out}" in capsys.readouterr().out
    main(["inspect", str(out), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["provenance"]["calibration"]["samples"] == 64
    assert 0.39 < report["params"]["reduction"] < 0.42
    assert all(0 <= layer["relative_error_held_out"] < 1 for layer in report["layers"])
    main(["inspect", str(out), "--plot", str(tmp_path / "small.png")])
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    assert layer in capsys.readouterr().out
    main(["evaluate", str(out), "--data", "digits", "--json"])
    small = json.loads(capsys.readouterr().out)
    main(["evaluate", "--model", STANDIN, "--data", "digits", "--json"])
    dense = json.loads(capsys.readouterr().out)
    assert set(small) == {"top1", "top5", "loss", "n"}
    assert small["n"] == dense["n"] > 400
    assert 50 < small["top1"] <= dense["top1"]
    main([*COMPRESS, "--recipe", recipe, "--resume", "--out", str(out)])
    assert "finished already" in capsys.readouterr().out
    assert "exists already" in refused(capsys, *COMPRESS, "--out", out)
    main(["finetune", str(out), "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "tuned")])
    assert "of the parameters" in capsys.readouterr().out
    main(["inspect", str(tmp_path / "tuned"), "--json"])
    assert json.loads(capsys.readouterr().out)["protocol"] == "partial-ft"


def test_a_nested_folder_is_shrunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, smaller, direct = tmp_path / "small", tmp_path / "smaller", tmp_path / "direct"
    main([*COMPRESS, "--recipe", "exact", "--nested", "--out", str(small)])
    size = (small / "nested.safetensors").stat().st_size
    text = " ".join(capsys.readouterr().out.split())
    entry = json_of(capsys, "inspect", small)["nested"]
    assert f"nested: `shrink` opens it at any reduction up to {entry['largest_reduction']:.4g}, " in text
    assert f"ranks by allocator knapsack: {size / 2**20:.2f} MiB more on disk" in text
    assert (entry["bytes"], entry["allocator"]) == (size, {"name": "knapsack"})
    main(["shrink", str(small), "--reduction", "0.6", "--out", str(smaller)])
    assert f"saved to {smaller}" in capsys.readouterr().out
    main([*COMPRESS, "--recipe", "exact", "--reduction", "0.6", "--out", str(direct)])
    capsys.readouterr()
    files = [(folder / "model.safetensors").read_bytes() for folder in (smaller, direct)]
    assert files[0] == files[1]
    taken, made = (json_of(capsys, "inspect", folder) for folder in (smaller, direct))
    assert taken["nested"] is None
    assert taken["layers"] == made["layers"]
    assert taken["provenance"]["calibration"] == made["provenance"]["calibration"]
    main([*COMPRESS, "--recipe", "exact", "--nested", "--resume", "--out", str(small)])
    assert "finished already" in capsys.readouterr().out
    assert "exists already" in refused(capsys, *COMPRESS, "--recipe", "exact", "--nested", "--resume", "--out", direct)
    out = ("--out", tmp_path / "out")
    assert "holds one size only" in refused(capsys, "shrink", direct, "--reduction", 0.7, *out)
    assert "out of reach" in refused(capsys, "shrink", small, "--reduction", 0.99, *out)
    assert "exists already" in refused(capsys, "shrink", small, "--reduction", 0.7, "--out", direct)
    assert "cuda:77" in refused(capsys, "shrink", small, "--reduction", 0.7, "--device", "cuda:77", *out)
    assert "choose --solver closed_form or --solver moments" in refused(
        capsys, *COMPRESS, "--recipe", "paper", "--nested", *out
    )
    assert not (tmp_path / "out").exists()


def test_tokens_of_a_folder_and_of_a_dense_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, merged, kept = tmp_path / "small", tmp_path / "merged", tmp_path / "kept"
    main([*COMPRESS, "--out", str(small)])
    main(["tokens", str(small), "--macs", "0.5", "--out", str(merged)])
    assert "tome (r " in capsys.readouterr().out.splitlines()[-1]
    macs = json_of(capsys, "inspect", merged)["macs"]
    assert 0.4 * macs["dense"] < macs["compressed"] <= 0.5 * macs["dense"]
    main(["tokens", "--model", STANDIN, "--rule", "evit", "--keep", "0.7", "--out", str(kept)])
    assert "evit (keep 0.7" in capsys.readouterr().out
    assert json_of(capsys, "evaluate", kept, "--data", "digits")["top1"] > 50
    out = ("--out", tmp_path / "out")
    assert "is out of reach" in refused(capsys, "tokens", small, "--macs", 0.01, *out)
    assert "fewer tokens already" in refused(capsys, "tokens", merged, "--r", 1, *out)
    assert "not take these options" in refused(capsys, "tokens", small, "--keep", 0.5, *out)
    kong = ("--rule", "spvit-kong-gates", "--keep", 0.5, *out)
    assert "name images by --data" in refused(capsys, "tokens", small, *kong)
    assert "leave out --data" in refused(capsys, "tokens", small, "--r", 1, "--data", "digits", *out)
    assert "epochs, batch_size and lr must be" in refused(
        capsys, "tokens", small, *kong, "--data", "digits", "--calibration-samples", 64, "--learning-rate", "nan"
    )
    assert not (tmp_path / "out").exists()


def test_distill(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = tmp_path / "small", tmp_path / "distilled"
    save(compress(load_model("digits_deit_small"), [images(64)], "exact", 0.4)[0], small)
    command = ["distill", str(small), "--data", "digits", "--calibration-samples", "64", "--epochs", "1"]
    with monkeypatch.context() as patched:
        interrupt(patched, Distillation, 0)
        with pytest.raises(PowerCutError):
            main([*command, "--out", str(out)])
    assert not out.exists()
    capsys.readouterr()
    main([*command, "--held-out-samples", "50", "--out", str(out)])
    captured = capsys.readouterr()
    assert f"saved to {out}" in captured.out
    assert captured.err.startswith("distil ")  # one epoch needs no number
    report, before = json_of(capsys, "inspect", out), json_of(capsys, "inspect", small)
    entry = report["distillation"]
    assert report["protocol"] == "calibration-distilled"
    assert (report["params"], report["layers"]) == (before["params"], before["layers"])
    assert (entry["images"], entry["batch_size"], entry["flips"]) == (64, 20, False)
    assert (entry["lr"], entry["vector_lr"]) == (1e-5, 3e-3)
    assert entry["calibration"]["samples"] == 64
    assert entry["kl_held_out"]["after"] < entry["kl_held_out"]["before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilled", "small"]
    assert json_of(capsys, "evaluate", out, "--data", "digits")["top1"] > 50
    assert "exists already" in refused(capsys, *command, "--out", out)
    eight, other = tmp_path / "eight", ("--out", tmp_path / "other")
    main(["quantize", str(out), "--bits", "8", "--out", str(eight)])
    capsys.readouterr()
    assert "then quantise that" in refused(capsys, "distill", eight, "--data", "digits", *other)
    line = refused(capsys, *command, "--learning-rate", "-1", *other)
    assert "lr" in line
    assert "mix is 0.6" in refused(capsys, *command, "--mix", "0.6", *other)
    assert not list(tmp_path.glob("*other*"))
