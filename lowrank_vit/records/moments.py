"""Running sums of one layer's statistics over the calibration images. Tensors are float64."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Hold sums over the calibration set of one layer's statistics; merging two sets is adding them.

    ``sums`` holds, as far as they were asked for (x: input of a token, y = x W without bias, g: gradient of the loss
    with respect to the output, X_i: all tokens of image i):

    =========================  ==========  ==============================================
    ``input_sum``              (n,)        sum of x
    ``input_second``           (n, n)      sum of x x^T
    ``output_second``          (d, d)      sum of y y^T
    ``normalised_*``           as above    the same with image i weighted by 1 / ||X_i W||_F^2
    ``normalised_weight``      ()          sum of the weights of all tokens
    ``input_abs``              (n,)        sum of |x|
    ``scan_change``            (D, D)      sum of e e^T, e: what a mixer's last layer is no longer given without its scan
    ``scan_whole``             (D, D)      sum of h h^T, h: what it is given with it; both at the mixer's first layer
    ``representative``         (t, n)      sum of X_i over images
    ``representative_windows`` ()          windows of all images; as many as images where a layer sees whole ones
    ``gradient_second``        (d, d)      sum of g g^T
    ``gradient_rows``          (t, t)      sum over images of G G^T, G: (t, d) the gradient at all tokens of an image
    ``gradient_abs``           (n, d)      sum over images of |X^T G|, the magnitudes of the weight's gradient
    ``fisher_rows``            (n,)        sum over images of the row sums of the squared weight gradient
    ``sensitive_second``       (n, n)      sum of ||g||^2 x x^T: tokens weighted by their squared gradient
    ``sensitive_input_sum``    (n,)        sum of ||g||^2 x
    ``sensitive_weight``       ()          sum of ||g||^2
    ``sensitive_tokens``       (t,)        sum of ||g||^2 over images, for each position of an image
    ``gate_fisher``            (n, n)      sum over images of s s^T, s the gradient of gates, all 1, on the inputs
    ``head_fisher_query``      (h, s, s)   sum over images of D D^T, D the gradient of B in ``logit = q^T B k / sqrt(s)``
    ``head_fisher_key``        (h, s, s)   sum over images of D^T D; both by ``"head_fisher"``, at a layer with heads
    ``learnt``                 (n,)        no sum: what trained gates have learnt that each input is worth
    ``learnt_outputs``         (d,)        the same of each output
    =========================  ==========  ==============================================
    """

    images: int
    tokens: int
    sums: Mapping[str, Tensor]

    def __add__(self, other: "Moments") -> "Moments":
        if self.sums.keys() != other.sums.keys():
            raise ValueError("moments of different statistics cannot be merged")
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        return Moments(self.images + other.images, self.tokens + other.tokens, sums)

    def has(self, name: str) -> bool:
        """Tell whether the statistic was collected."""
        return name in self.sums

    def mean(self, name: str) -> Tensor:
        """Return the average that belongs to a sum: over tokens, over weighted tokens, or over images.

        A sum ``KIND_...`` beside a sum ``KIND_weight`` is averaged over that weight. Moments of gradients are averaged
        over images, so that they refer to the loss of one image, and so is the representative input.
        """
        weight = self.sums.get(f"{name.partition('_')[0]}_weight")
        if weight is not None:
            return self.sums[name] / weight.clamp_min(torch.finfo(torch.float64).tiny)
        by_image = name == "representative" or "gradient" in name or "fisher" in name
        return self.sums[name] / (self.images if by_image else self.tokens)


def as_float64(tensor: Tensor) -> Tensor:
    """Convert to float64, the precision of all statistics and factorisations."""
    return tensor.detach().to(torch.float64)
