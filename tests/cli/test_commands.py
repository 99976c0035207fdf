"""The commands as a user types them: results on the standard output, a mistake is one line and exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lowrank_vit import compress, load, save
from lowrank_vit.cli import main
from lowrank_vit.models import load_model
from tests.support.commands import COMPRESS, STANDIN, json_of, refused
from tests.support.models import ARGUMENTS, images, tiny


@pytest.mark.parametrize("module", ["lowrank_vit", "experiments"])
def test_help_answers_at_once(module: str) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "usage" in done.stdout
    assert min(seconds) < 1


@pytest.mark.parametrize(
    "kind", ["models", "recipes", "decompositions", "allocators", "compensations", "quantizers", "tokens"]
)
def test_list(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", kind])
    text = capsys.readouterr().out
    main(["list", kind, "--json"])
    names = json.loads(capsys.readouterr().out)
    assert len(names) >= (2 if kind in ("quantizers", "tokens") else 4)
    assert [line.split()[0] for line in text.splitlines()] == names


def test_several_reductions_are_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*COMPRESS, "--recipe", "svd", "--out", str(tmp_path), "--reduction"]
    main([*arguments, "0.3,0.50"])
    main([*arguments, "0.3,0.50,0.6", "--resume"])
    said = capsys.readouterr().out
    assert [said.count(f"{tmp_path / name} is finished already") for name in ("0.3", "0.50", "0.6")] == [1, 1, 0]
    for name in ("0.3", "0.50", "0.6"):
        assert f"saved to {tmp_path / name}" in said
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert float(name) <= report["params"]["reduction"] < float(name) + 0.02
    finished = tmp_path / "0.3"
    for other in (["--recipe", "svd", "--reduction", "0.25"], ["--recipe", "asvd", "--reduction", "0.3"]):
        said = refused(capsys, *COMPRESS, *other, "--out", finished, "--resume")
        assert f"{finished} was made by svd to reduction 0.3: choose another --out" in said
    assert "give 0.4 for 40 %" in refused(capsys, *arguments, "40")
    assert "give --model digits_deit_small" in refused(capsys, "inspect", "digits_deit_small")
    with pytest.raises(SystemExit):
        main([*arguments, "0.3,half"])
    assert "invalid shares value: '0.3,half'" in capsys.readouterr().err


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


def test_quantize_inspect_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, eight, half = tmp_path / "small", tmp_path / "eight", tmp_path / "half"
    main([*COMPRESS, "--out", str(small)])
    main(["quantize", str(small), "--bits", "8", "--out", str(eight)])
    line = capsys.readouterr().out.splitlines()[-1]
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (small, eight))
    assert "8 bits" in line
    assert f"{before / 2**20:.2f} MiB -> {after / 2**20:.2f} MiB; saved to {eight}" in line
    report = json_of(capsys, "inspect", eight)
    assert report["file_bytes"] == report["quantization"]["file_bytes"] == report["bytes"]["file"] == after
    assert report["layers"] == json_of(capsys, "inspect", small)["layers"]
    main(["inspect", str(eight)])
    text = " ".join(capsys.readouterr().out.split())
    assert "8 bits in" in text
    assert f"{after / 2**20:.2f} MiB on disk" in text
    scores = [json_of(capsys, "evaluate", folder, "--data", "digits") for folder in (small, eight)]
    assert abs(scores[0]["top1"] - scores[1]["top1"]) < 1
    dense = json_of(capsys, "quantize", "--model", STANDIN, "--bits", 16, "--out", half)
    assert (dense["bits"], dense["layers"]) == (16, 0)
    main(["inspect", str(half)])
    assert "dense" in capsys.readouterr().out
    assert json_of(capsys, "evaluate", half, "--data", "digits")["top1"] > 90
    assert "no compressed layers" in refused(capsys, "inspect", half, "--plot", tmp_path / "x.png")
    out = ("--out", tmp_path / "out")
    assert "9 bits: choose 2 to 8" in refused(capsys, "quantize", small, "--bits", 9, *out)
    assert "quantised already" in refused(capsys, "quantize", eight, "--bits", 4, *out)
    assert "either DIR or --model" in refused(capsys, "quantize", "--bits", 4, *out)
    assert "exists already" in refused(capsys, "quantize", small, "--bits", 4, "--out", eight)
    assert "then quantise that" in refused(capsys, "finetune", eight, "--data", "digits", *out)
    assert not (tmp_path / "out").exists()


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
    assert "pivoted factors cannot be nested" in refused(capsys, *COMPRESS, "--nested", "--pivoted", *out)
    assert "closed_form or moments" in refused(capsys, *COMPRESS, "--recipe", "paper", "--nested", *out)
    assert not (tmp_path / "out").exists()


def test_quantize_keeps_how_timm_made_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compressed, _ = compress(tiny(), [images(12)], "exact", 0.4)
    save(compressed, tmp_path / "small", model_args=ARGUMENTS["vit"])
    entry = json_of(capsys, "quantize", tmp_path / "small", "--bits", 5, "--out", tmp_path / "five")
    assert entry["bits"] == 5
    with torch.no_grad():
        error = (load(tmp_path / "five")(images(3)) - compressed(images(3))).norm() / compressed(images(3)).norm()
    assert 0 < error < 0.5


def test_errors_are_fed_back_where_there_are_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fewer = ["quantize", "--model", STANDIN, "--bits", 3, "--method", "gptq", "--out", tmp_path / "three"]
    assert "gptq looks at the layers' inputs: give --data" in refused(capsys, *fewer)
    assert not (tmp_path / "three").exists()
    fed_back = json_of(capsys, *fewer, "--data", "digits", "--calibration-samples", 64)
    assert (fed_back["bits"], fed_back["method"], fed_back["calibration"]["samples"]) == (3, "gptq", 64)


def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def compress(**changes: str | Path) -> str:
        given = {
            "model": STANDIN,
            "data": "digits",
            "reduction": "0.4",
            "out": out,
            "calibration_samples": "16",
            **changes,
        }
        flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        line = refused(capsys, "compress", *flags)
        assert not list(tmp_path.glob("*out*"))
        return line

    assert "unknown recipe 'exat': did you mean 'exact'?" in compress(recipe="exat")
    assert "did you mean" in compress(model="deit_tiny_patch16_223")
    assert "bogus" in compress(data="bogus")
    assert "out of reach" in compress(reduction="0.99")
    assert "out of reach" in compress(reduction="nan")
    assert "nowhere" in compress(data=f"imagefolder:{tmp_path / 'nowhere'}")
    assert "calibration_samples is 0" in compress(calibration_samples="0")
    assert "cannot be used" in compress(device="cuda:77")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk" * 100)
    assert "junk.safetensors" in compress(checkpoint=junk)
    assert "exists already" in compress(out=junk / "below") or "cannot write" in compress(out=junk / "below")
    shutil.rmtree(tmp_path / "empty", ignore_errors=True)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    assert "empty" in compress(data=f"imagefolder:{tmp_path / 'empty'}")


def test_evaluate_wants_one_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "either DIR or --model" in refused(capsys, "evaluate", "--data", "digits")
    assert "config.json is missing" in refused(capsys, "evaluate", tmp_path, "--data", "digits")
    assert "config.json is missing" in refused(capsys, "inspect", tmp_path)


def test_the_optimizer_of_z_is_in_the_report(tmp_path: Path) -> None:
    steps = [
        "--recipe",
        "paper",
        "--solver",
        "moments",
        "--optimizer",
        "sgd",
        "--steps",
        "3",
        "--held-out-samples",
        "0",
    ]
    main([*COMPRESS, *steps, "--out", str(tmp_path / "small")])
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["compensation"]["optimizer"] == report["recipe_fields"]["optimizer"] == "sgd"


def test_the_papers_trajectory_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "small"
    main([*COMPRESS, "--recipe", "paper", "--solver", "closed_form", "--held-out-samples", "0", "--out", str(out)])
    main(["inspect", str(out), "--json", "--plot", str(tmp_path / "small.svg")])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["trajectory"]
    assert all(layer["relative_error_held_out"] is None for layer in report["layers"])
    assert "step of Algorithm 1" in (tmp_path / "small.svg").read_text()
    assert "end its name" in refused(capsys, "inspect", out, "--plot", tmp_path / "small.doc")


@pytest.mark.parametrize("rule", ["spvit-kong-gates", "spvit-kong"])
def test_tokens_that_are_learnt(rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--data", "digits", "--calibration-samples", "64", "--epochs", "1"]
    main(["tokens", "--model", STANDIN, "--rule", rule, "--keep", "0.7", *few, "--out", str(tmp_path / "kept")])
    assert f"{rule} (keep 0.7" in capsys.readouterr().out
    assert json_of(capsys, "evaluate", tmp_path / "kept", "--data", "digits")["top1"] > 30


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


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("evaluate", ["--dense"]),
        ("distill", ["--out", "distilled"]),
        ("finetune", ["--distill", "--out", "tuned"]),
    ],
)
def test_a_dense_model_that_cannot_be_fetched_names_the_option_of_the_verb(
    verb: str,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small, report = compress(load_model(STANDIN), [images(8)], "svd", 0.4)
    save(small, "small", {**report, "model": "deit_tiny_patch16_224"})
    monkeypatch.setattr("lowrank_vit.models.load.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    said = refused(capsys, verb, "small", "--data", "digits", *options)
    assert said.endswith(": pass --checkpoint FILE.safetensors")
