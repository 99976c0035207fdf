"""timm's MLP-Mixer: one MLP over the tokens of each channel, one over the channels of each token."""

from timm.models.mlp_mixer import MixerBlock, MlpMixer
from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch
from lowrank_vit.architectures.plain import PlainFamily


@FAMILIES.register("mixer")
class Mixer(PlainFamily):
    """Describe blocks that add two MLPs, each after a norm, to a sequence of tokens; the first one sees it transposed."""

    about = "timm's MLP-Mixer"
    whole = MlpMixer
    blocks = (MixerBlock,)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return the branches of both MLPs; what is a token to the first one is a channel of the stream."""
        assert isinstance(step, MixerBlock)
        return (
            Branch(
                step,
                "mlp_tokens",
                "fc2",
                lambda x: step.mlp_tokens(step.norm1(x).mT).mT,
                tokens=lambda x: x.mT,
                stream=lambda tokens, shape: tokens.mT,
            ),
            Branch(step, "mlp_channels", "fc2", lambda x: step.mlp_channels(step.norm2(x)), norm="norm2"),
        )
