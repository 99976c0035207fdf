"""The Fisher information of the logits of every head."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("head_fisher")
class HeadFisher:
    """Collect ``head_fisher_query`` and ``head_fisher_key``, (h, s, s): from the queries and their gradient only.

    ``D = sum_q q (dL/dq)^T = sum_qk (dL/dlogit_qk) q k^T / sqrt(s)`` is the gradient of an image's loss with respect
    to B in ``logit = q^T B k / sqrt(s)``, whatever windows, masks and position biases there are. The sums over images
    are of ``D D^T`` and ``D^T D``. Collected only at a layer with heads. Where that makes keys and values alone, keys
    take the place of the queries: ``D^T = sum_k k (dL/dk)^T``, and both sums change their names.
    """

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        output = seen.output.detach().float() + seen.later_bias
        output = output.reshape(seen.images, -1, output.shape[-1])
        heads, width = seen.site.heads, output.shape[-1] // seen.site.parts
        queries, slopes = (t[..., :width].unflatten(-1, (heads, -1)).transpose(1, 2) for t in (output, seen.slopes))
        slope = queries.mT @ slopes  # (images, heads, s, s)
        sums.add("head_fisher_query", (slope @ slope.mT).sum(0))
        sums.add("head_fisher_key", (slope.mT @ slope).sum(0))
