"""``quantize``: store a model's weights in fewer bits."""

import argparse
import json

from lowrank_vit.cli import arguments
from lowrank_vit.runtime.errors import InputError

HELP = "store the weights of a compressed or a dense model in fewer bits"
EXAMPLE = "small --bits 4 --method gptq --data imagefolder:PATH --out small4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    arguments.add_folder(parser, optional=True)
    arguments.add_model(parser, required=False)
    parser.add_argument(
        "--bits", type=int, required=True, help="bits of each weight, 2 to 8; 16 stores float16 and quantises nothing"
    )
    parser.add_argument(
        "--method", default="nearest", metavar="NAME", help="how to round: nearest, or gptq, which needs --data"
    )
    arguments.add_data(parser, required=False, shared=False)
    arguments.add_calibration(parser, held_out=False)
    parser.add_argument("--sites", metavar="REGEX", help="names of the linear layers (default: all in blocks)")
    parser.add_argument("--json", action="store_true", help="print the report's entry as JSON")
    arguments.add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Quantise a folder's model, or a dense model by name, and save it to another folder."""
    from lowrank_vit.runtime.hardware import resolve_device
    from lowrank_vit.stages.quantize import QUANTIZERS

    device = resolve_device(args.device)
    if QUANTIZERS.get(args.method).needs and args.data is None:
        raise InputError(f"--method {args.method} looks at the layers' inputs: give --data, or choose nearest")
    from lowrank_vit.cli.view import mebibytes, precision
    from lowrank_vit.compression.quantize import quantize
    from lowrank_vit.compression.report import dense_report
    from lowrank_vit.modules.counting import parameter_bytes
    from lowrank_vit.storage import folder as storage

    model, model_args = arguments.chosen_model(args)
    if args.folder:
        before, report = storage.file_bytes(args.folder), storage.load_report(args.folder)
    else:
        before, report = parameter_bytes(model), dense_report(model)
    options = arguments.chosen_sites(args)
    model = model.to(device)
    images = None if args.data is None else arguments.calibration_images(arguments.calibration_data(args, model))
    quantized, addition = quantize(model, args.bits, images, quantizer=args.method, progress=True, **options)
    storage.save(quantized, args.out, {**report, **addition}, model_args=model_args)
    saved = storage.load_report(args.out)
    if args.json:
        print(json.dumps(saved["quantization"]))
        return
    after = storage.file_bytes(args.out)
    print(f"{precision(saved)}: {mebibytes(before)} -> {mebibytes(after)}; saved to {args.out}")
