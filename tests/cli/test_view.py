"""What the commands print of a report, of plans and of a sweep: each number says what it is."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lowrank_vit import analyse, compress, get_recipe
from lowrank_vit.cli import main
from lowrank_vit.cli.view import show_plans, show_report, size_line
from lowrank_vit.compression.outlook import outlook
from lowrank_vit.modules.counting import model_size
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.files import cache_folder
from tests.support.commands import refused
from tests.support.models import images, tiny

pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_a_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = compress(tiny(), [images(12)], "best", 0.4, held_out=[images(6, seed=7)], progress=False)
    show_report(report, 1000)
    text = " ".join(capsys.readouterr().out.split())
    attention = next(layer["details"] for layer in report["layers"] if layer["name"].endswith("attn"))
    for part in (
        f"query-key {attention['query_key']} of {attention['query_key_of']}, value {attention['value']} of ",
        "error of on unseen layer kept params output % images %",
        "relative error of the layers' outputs: ",
        "% on calibration images, ",
    ):
        assert part in text
    assert "if it is far above 1, calibrate on more images)" in text
    assert "objective" not in text
    assert "times fewer multiply-accumulates; `lowrank-vit benchmark` measures the speed" in size_line(report, 1000)
    monkeypatch.setenv("COLUMNS", "60")
    show_report(report, 1000)
    assert "…" not in capsys.readouterr().out


def test_plans(capsys: pytest.CaptureFixture[str]) -> None:
    """Multiply-accumulates are those of the model that is made, whose heads are padded to one width."""
    analysis = analyse(tiny(), [images(12)], get_recipe("best").but(measured=0), progress=False)
    told = outlook(analysis, (0.3, 0.5))
    made = [model_size(analysis.resized(analysis.plan(share)))[1] for share in (0.3, 0.5)]
    assert [size["macs"] for size in told["sizes"]] == made
    show_plans({"model": "tiny", "recipe": "best", **told})
    assert "a second-order estimate, before anything is measured" in capsys.readouterr().out


def test_recipes_begin_with_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "recipes"])
    assert capsys.readouterr().out.startswith("best (default)  ")
    main(["list", "recipes", "--json"])
    assert "best" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("fingerprint", [None, "few"])
def test_one_batch_has_an_estimate_too(fingerprint: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    compress(tiny(), Images([images(12)], fingerprint), "svd", 0.3, progress=True)
    told = capsys.readouterr().err
    assert "estimate from one batch: about " in told
    where = f"; statistics are cached in {cache_folder()}, which may be deleted at any time"
    assert (where in told) == (fingerprint is not None)


def test_a_sweep_of_several_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row and a point for each size of each recipe; the dense model sees each image once."""
    model: Any = tiny()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    seen = list[int]()  # batches, by the dense model and not its copies
    model.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])) if module is model else None)
    monkeypatch.setattr("lowrank_vit.cli.arguments.named_model", lambda args: (model, {}))
    drawn = list[Any]()
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    words = shlex.split("sweep --model x --data digits --limit 20 --calibration-samples 8 --batch-size 20 --device cpu")
    words += ["--recipe", "svd, exact"]
    main([*words, "--reduction", "0.3,0.5", "--plot", str(tmp_path / "pareto.png")])
    assert seen.count(20) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "recipe svd, exact, on 20 images" in out
    for row in ("svd reduction 0.3", "svd reduction 0.5", "exact reduction 0.3", "exact reduction 0.5"):
        assert row in out
    curves = [line for line in drawn[0].axes[0].lines if line.get_label() in ("svd", "exact")]
    assert [len(line.get_xdata()) for line in curves] == [2, 2]
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["svd", "exact"]
    assert "unknown recipe 'best2'" in refused(capsys, *words, "--reduction", "0.3", "--recipe", "svd,best2")
    told = refused(capsys, *words, "--reduction", "0.3,0.99")
    assert "out of reach" in told
