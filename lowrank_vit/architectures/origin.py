"""Tell which classes are of Hugging Face's ``transformers``, without the package."""

from torch import nn

PACKAGE = "transformers.models."


def kind_of(module: nn.Module) -> str:
    """Return the name of a class of transformers; nothing for a class of any other origin."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith(PACKAGE) else ""
