"""Log the curves of a fine-tuning to the job's run of Weights & Biases, from one process or from several."""

from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger


class Curves(WandbLogger):
    """Log the metrics alone: the run has its config, and the hyperparameters are in the result.

    A process that Lightning spawns attaches to the run that this one has begun, and only the first of them logs, so
    there is one run on any number of devices.
    """

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings that were used would overwrite those that were asked for."""


def finetune_loggers(run: Any) -> list[Logger]:
    """Return Lightning's logger of the run; none where nothing is tracked."""
    return [] if run is None else [Curves(experiment=run)]
