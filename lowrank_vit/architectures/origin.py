"""Tell which classes are of Hugging Face's ``transformers``, or a CLIP of open_clip's or OpenAI's, without the packages."""

from torch import nn

PACKAGE = "transformers.models."
CLIPS = ("open_clip.", "clip.model")
TOWER = "visual"  # what these call the part that sees images


def kind_of(module: nn.Module) -> str:
    """Return the name of a class of transformers; nothing for a class of any other origin."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith(PACKAGE) else ""


def image_tower(model: nn.Module) -> str:
    """Return the name of the part that sees images in a model that embeds texts, too; nothing for another model."""
    both = callable(getattr(model, "encode_image", None)) and callable(getattr(model, "encode_text", None))
    return TOWER if both and isinstance(getattr(model, TOWER, None), nn.Module) else ""


def is_clip(model: nn.Module) -> bool:
    """Tell whether a model is a CLIP, or a tower of one, whose outputs are no scores of classes."""
    return type(model).__module__.startswith(CLIPS) or bool(image_tower(model))
