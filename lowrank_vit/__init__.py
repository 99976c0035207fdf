"""Smaller vision transformers by activation-aware, mixed-rank low-rank approximation.

compressed, report = lowrank_vit.compress(model, calibration=dataloader, reduction=0.5)
lowrank_vit.save(compressed, "small")
model = lowrank_vit.load("small")

In place of ``reduction``, ``budget={"macs": 0.5}`` and the like: params, macs, bytes or latency that remain.
``compress(model, dataloader, budget="bytes=4MiB", bits=(2, 3, 4, 6, 8))`` chooses sizes and bits together, and
``compress_with_fewer_tokens(model, dataloader, "macs=0.6", held_out=others)`` sizes and tokens.

Public are the names below, and the packages ``runtime``, ``records``, ``linalg``, ``modules``, ``objectives``, ``data``
and ``models``. All other modules are internal: what they do is reached by the names below.
"""

from typing import TYPE_CHECKING

from lowrank_vit.runtime.lazy import lazily

if TYPE_CHECKING:
    from lowrank_vit.architectures.base import family_of, first_inputs
    from lowrank_vit.architectures.linears import BLOCK_LINEARS, dense_weight, find_sites
    from lowrank_vit.compression.analysis import Analysis
    from lowrank_vit.compression.budget import check_budget, check_reduction
    from lowrank_vit.compression.calibrate import collect
    from lowrank_vit.compression.compress import (
        analyse,
        compress,
        compress_and_quantize,
        compress_with_fewer_tokens,
        sweep,
    )
    from lowrank_vit.compression.fewer_tokens import fewer_tokens
    from lowrank_vit.compression.learn import learn
    from lowrank_vit.compression.mean_scan import MeanScan, mean_scan
    from lowrank_vit.compression.quantize import quantize, quantize_within
    from lowrank_vit.compression.recipe import Recipe, recipe_of
    from lowrank_vit.compression.recipes import RECIPES, get_recipe
    from lowrank_vit.compression.report import dense_report
    from lowrank_vit.compression.revisions import revisions_of
    from lowrank_vit.compression.runtimes import benchmark
    from lowrank_vit.compression.save import load, push_to_hub, save
    from lowrank_vit.runtime.errors import InputError
    from lowrank_vit.runtime.hardware import Hardware
    from lowrank_vit.stages.calibrate.stream import calibrate
    from lowrank_vit.stages.compensate import Compensation
    from lowrank_vit.stages.compensate.minibatch import compensate_minibatch
    from lowrank_vit.stages.compensate.solve import Solution, solve
    from lowrank_vit.stages.correct.output_refit import OutputRefit
    from lowrank_vit.stages.decompose import DECOMPOSITIONS
    from lowrank_vit.stages.evaluate.accuracy import evaluate
    from lowrank_vit.stages.evaluate.classify import classify
    from lowrank_vit.stages.evaluate.comparison import compare
    from lowrank_vit.stages.evaluate.speed import Setting, for_inference
    from lowrank_vit.stages.export.export import export
    from lowrank_vit.stages.export.half import export_half
    from lowrank_vit.stages.export.integers import export_integers
    from lowrank_vit.stages.training.distill import distill
    from lowrank_vit.stages.training.finetune import finetune
    from lowrank_vit.stages.training.teacher import augmentations
    from lowrank_vit.storage.contents import file_bytes, is_saved_model, load_report

__version__ = "0.2.0"
__getattr__, __dir__ = lazily(__name__, __file__)
