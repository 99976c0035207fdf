"""``customize``: teach a diffusion model a new concept from a few images, as a small delta."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_vit.cli import arguments
from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_vit.customize.customization import Customization
    from lowrank_vit.customize.deltas import Delta
    from lowrank_vit.customize.sample import Prior
    from lowrank_vit.customize.text_to_image import TextToImage
    from lowrank_vit.customize.train import Trained

DIGITS = "digits"
SUFFIX = ".safetensors"
SMALL = 64  # pixels: smaller images are enlarged in the grid of samples


HELP = "teach a diffusion model a new concept from a few images, as a small delta"
EXAMPLE = "--model digits --images PATH --prompt 'a photo of V*' --out new.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="the folder of a model of diffusers with a UNet2DConditionModel, or digits: the small embedded one",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="a few images of the new concept")
    parser.add_argument("--prompt", required=True, help="what they show, such as 'a photo of V* dog'")
    parser.add_argument("--word", default="V*", help="the new word, where the prompt has it")
    _add_method(parser)
    _add_prior(parser)
    parser.add_argument(
        "--samples", type=arguments.natural, default=0, help="images to draw before and after, to DELTA.png"
    )
    parser.add_argument("--guidance", type=float, default=7.0, help="how strongly samples follow the prompt")
    arguments.add(parser, "--seed", "--device")
    parser.add_argument("--out", type=Path, required=True, metavar="DELTA", help=f"the file to write, {SUFFIX}")


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method", default="comcat", help="comcat | lora | custom_diffusion | dreambooth | textual_inversion"
    )
    parser.add_argument(
        "--rank", type=arguments.natural, help="rank per head (comcat, default: 2) or layer (lora, default: 4)"
    )
    parser.add_argument(
        "--method-args",
        type=arguments.key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="further settings of the method, such as zero_start=false or layers=cross; repeatable",
    )
    parser.add_argument("--steps", type=arguments.natural, default=500, help="training steps")
    parser.add_argument("--batch-size", type=arguments.natural, default=1, help="images in a step")
    parser.add_argument(
        "--learning-rate", type=float, help="initial learning rate; it falls to zero (default: the method's)"
    )


def _add_prior(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prior",
        action="append",
        default=[],
        metavar="PROMPT",
        help="also train on images that the model draws for this prompt, so that it forgets less; repeatable",
    )
    parser.add_argument(
        "--prior-images", type=arguments.natural, default=100, help="images to draw for --prior, in all"
    )
    parser.add_argument("--prior-weight", type=float, default=1.0, help="weight of the loss on them")


def run(args: argparse.Namespace) -> None:
    """Train a delta, and write it."""
    from lowrank_vit.customize.customization import customized, save_delta
    from lowrank_vit.customize.sample import load_images
    from lowrank_vit.customize.train import Training, train
    from lowrank_vit.runtime.hardware import resolve_device

    if args.out.suffix != SUFFIX or args.out.exists():
        raise InputError(f"--out {args.out}: name a new file that ends in {SUFFIX}")
    method, device = _method(args), resolve_device(args.device)
    training = Training(args.steps, args.batch_size, args.learning_rate)
    model = _model(args.model).to(device)
    images, prior = load_images(args.images, model.channels, model.side), _prior(args, model)
    before = _samples(args, model, None)
    customization = customized(model, method, args.word if args.word in args.prompt.split() else None, seed=args.seed)
    told = train(customization, images, args.prompt, training, prior=prior, seed=args.seed, progress=True)
    save_delta(customization, args.out)
    _show(args, before, _samples(args, model, customization))
    print(_line(args, customization, told, len(images)))


def _method(args: argparse.Namespace) -> Delta:
    """Make the method with its settings. Raises ``InputError`` for a setting that it has not."""
    from dataclasses import fields

    from lowrank_vit.customize.deltas import DELTAS

    kind = DELTAS.get(args.method)
    given = dict(args.method_args) | ({} if args.rank is None else {"rank": args.rank})
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    for name in given:
        if name not in known:
            raise InputError(f"{args.method} has no setting {name!r}: it has {', '.join(known)}")
    return kind(**given)


def _model(name: str) -> TextToImage:
    from lowrank_vit.customize.diffusers_folder import open_folder
    from lowrank_vit.customize.digits import digits_model

    return digits_model() if name == DIGITS else open_folder(Path(name))


def _prior(args: argparse.Namespace, model: TextToImage) -> Prior | None:
    from lowrank_vit.customize.sample import draw_prior

    if not args.prior:
        return None
    named = [prompt for prompt in args.prior if args.word in prompt.split()]
    if named:
        raise InputError(f"--prior {named[0]!r} has the new word, which the model does not know yet: leave it out")
    settings = {"weight": args.prior_weight, "guidance": args.guidance, "seed": args.seed}
    return draw_prior(model, args.prior, args.prior_images, **settings, progress=True)


def _samples(args: argparse.Namespace, model: TextToImage, customization: Customization | None) -> Tensor | None:
    """Draw samples; before there is a delta, of the prompt without the new word. The noise is the same in both cases."""
    from lowrank_vit.customize.sample import sample

    if args.samples == 0:
        return None
    word = None if customization is None else customization.new_word
    prompt = args.prompt if customization else " ".join(part for part in args.prompt.split() if part != args.word)
    return sample(model, [prompt] * args.samples, word, guidance=args.guidance, seed=args.seed, progress=True)


def _show(args: argparse.Namespace, before: Tensor | None, after: Tensor | None) -> None:
    from lowrank_vit.customize.sample import save_grid

    if before is not None and after is not None:
        save_grid([before, after], args.out.with_suffix(".png"), enlarged=max(1, SMALL // before.shape[-1]))


def _line(args: argparse.Namespace, customization: Customization, told: Trained, images: int) -> str:
    """Sum up: the delta's size, how the loss fell, the time of a step."""
    losses, tenth = told.losses, max(1, len(told.losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    count = sum(tensor.numel() for tensor in customization.tensors.values())
    return (
        f"{args.method} on {images} images: {count:,} parameters, {args.out.stat().st_size / 1024:,.1f} KiB; "
        f"loss {first:.4f} -> {last:.4f} (first and last tenth of the steps); {told.seconds_a_step:.3f} s a step; "
        f"saved to {args.out}"
    )
