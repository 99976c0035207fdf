"""From a file's bytes to an upright 8-bit image of as many channels as a model takes."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lowrank_vit.runtime.errors import InputError

MODES = {1: "L", 3: "RGB"}
MARGIN = 2  # times the side that is needed: what a JPEG decoded at reduced size keeps
LONGEST = 1000  # times the shorter side: a longer strip, resized to 224 pixels, would fill the memory


def read_image(content: bytes, where: str, side: int | None = None) -> Image.Image:
    """Decode an image completely; ``where`` names it in errors. Raises ``InputError`` where that fails.

    With ``side``, to which the shorter side will be resized, a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and the
    whole of its size that leaves the shorter side ``MARGIN`` times as long: below 4 ``side`` pixels nothing changes.
    What it changes in the tensors is below the difference between two good filters for the resize: a root mean square of
    0.012 (of unit variance) against 0.019 between bicubic and Lanczos, 0.033 between bicubic and bilinear. Without the
    margin it would be 0.016 to 0.040, so files below 4 ``side``, ImageNet's among them, are decoded whole.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if side is not None:
            image.draft(None, (MARGIN * side, MARGIN * side))
        image.load()
    except Exception as error:  # each of Pillow's formats fails in its own way on a broken file
        unknown_format = isinstance(error, UnidentifiedImageError)  # whose text shows a buffer's address
        reason = "it is empty or not an image" if unknown_format else (str(error).splitlines() or ["broken"])[0]
        raise InputError(f"cannot read the image {where} ({reason}): replace or remove it") from error
    if max(image.size) > LONGEST * min(image.size):
        raise InputError(f"the image {where} is a strip of {image.width} x {image.height} pixels: replace or remove it")
    return image


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image to 8 bits, in grey (1 channel) or RGB (3 channels), upright as its EXIF orientation says.

    CMYK and palettes are converted, 16 and 32 bits scaled down, and what is transparent becomes white, as viewers show
    it. Raises ``InputError`` for another number of channels.
    """
    if channels not in MODES:
        raise InputError(f"images have 1 or 3 channels, the data config's input_size asks for {channels}")
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # ImageNet has files with damaged EXIF blocks; their pixels are good
        return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep grey images: Pillow's own conversion clips everything above 255 to white."""
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    peak = pixels.max(initial=0)
    if image.mode.startswith("I;16") or peak > 255:
        scale = 255 / 65535
    elif image.mode == "F" and peak <= 1:
        scale = 255.0
    else:
        scale = 1.0  # a deep format that holds 8-bit values
    return Image.fromarray(np.clip(np.rint(pixels * scale), 0, 255).astype(np.uint8))
