"""Let the model of a job hand on fewer tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from lowrank_vit import fewer_tokens


def with_fewer_tokens(job: Job, model: nn.Module, ledger: Ledger) -> nn.Module:
    """Return a dense or compressed model that hands on fewer tokens, within ``job.tokens``; its report goes to the ledger."""
    small: Any
    with ledger.stage("tokens", f"fewer tokens by {job.tokens['rule']}"):
        small = fewer_tokens(model, **job.tokens)
    ledger.keep("report", small.compression_report)
    return small
