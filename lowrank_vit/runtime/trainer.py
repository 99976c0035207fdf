"""How stages start Lightning: quietly, on one device or many, with the progress bar on the error stream.

Checkpoints are written whole after each epoch; only the run that wrote one can resume from it.
"""

import io
import logging
import re
import signal
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
from lightning.fabric.strategies import DDPStrategy as FabricDDPStrategy
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from lowrank_vit.runtime.errors import InputError, reason_of, worker_died
from lowrank_vit.runtime.files import write_bytes
from lowrank_vit.runtime.hardware import Hardware
from lowrank_vit.runtime.processes import launched_from_outside, leave_at_exit, rank_and_world
from lowrank_vit.runtime.progress import console_options

OWN_STRATEGIES = ("auto", "ddp", "ddp_spawn")
LOGGERS = ("lightning.pytorch", "lightning.fabric", "torch.multiprocessing.spawn")


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints whole: a crash leaves either the old one or the new one.

    Lightning's own writer moves a file from the temporary folder, which copies it if that folder is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file whole; Lightning calls this in the first process only."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())


class LastCheckpoint(Checkpoint):
    """Write the whole state to ``path`` after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def check_resumable(module: LightningModule, path: Path, trained: Collection[str]) -> None:
    """Raise ``InputError`` unless the checkpoint has the settings, shapes and frozen parameters of this run."""
    remedy = "remove it, or resume the run that wrote it"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings, state = dict(saved["hyper_parameters"]), saved["state_dict"]
    except Exception as error:
        raise InputError(f"{path} is not a checkpoint of such a run ({type(error).__name__}): {remedy}") from None
    for name, value in module.hparams.items():
        if settings.get(name) != value:
            raise InputError(f"{path} was trained with {name}={settings.get(name)}, not {value}: {remedy}")
    for name, parameter in module.named_parameters():
        other = state.get(name)
        if other is None or other.shape != parameter.shape:
            raise InputError(f"{path} is of another model, {name} differs in shape: {remedy}")
        if name not in trained and not torch.equal(other, parameter.detach().cpu()):
            raise InputError(f"{path} is of another model, the frozen {name} differs: {remedy}")


class StderrProgressBar(RichProgressBar):
    """Show Lightning's rich bar on the error stream: the standard output is for results (``evaluate --json``).

    The bar counts the steps of an epoch; before it stands what the module is ``doing``, and the epoch where there are more.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=4, console_kwargs=console_options(stderr=True))

    def _get_train_description(self, current_epoch: int) -> str:
        doing, epochs = self.trainer.lightning_module.doing, self.trainer.max_epochs
        return f"{doing}" if epochs == 1 else f"{doing}, epoch {current_epoch + 1} of {epochs}"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop, and reset rich's global console, which Lightning has reconfigured, to the standard output."""
        super().teardown(trainer, pl_module, stage)
        rich.reconfigure()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop, and reset the console as ``teardown`` does."""
        super().on_exception(trainer, pl_module, exception)
        rich.reconfigure()


def silence() -> None:
    """Turn off Lightning's hints, tips and advice on workers; errors and other libraries' warnings stay."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of a Z; it is not an error, and not slower


class _Quiet:
    """Have processes print nothing."""

    def setup_environment(self) -> None:
        """Silence a spawned process, which starts with fresh logging and warning filters, and have it leave in order."""
        silence()
        super().setup_environment()  # type: ignore[misc]  # of the strategy
        leave_at_exit()


class QuietFabricDDP(_Quiet, FabricDDPStrategy):
    """Run Fabric's processes, which execute a whole run together."""


class QuietDDP(_Quiet, DDPStrategy):
    """Run data-parallel processes in which no forward pass waits for another process.

    Buffers are equal in all processes and need no broadcast; with one, ranks with fewer batches would hang.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(broadcast_buffers=False, **options)


def choose_strategy(strategy: str | Strategy, devices: int, num_nodes: int) -> str | Strategy:
    """Return Lightning's strategy for ``"auto"``, ``"ddp"`` and ``"ddp_spawn"``; return any other unchanged.

    ``"auto"`` on several devices spawns processes for the run alone, so that what comes before and after it runs once;
    if a launcher has already started the processes, it uses those.
    """
    if strategy == "auto" and devices * num_nodes > 1:
        started = (
            rank_and_world()[1] > 1 or launched_from_outside() or LightningEnvironment().creates_processes_externally
        )
        strategy = "ddp" if num_nodes > 1 or started else "ddp_spawn"
    if strategy in ("ddp", "ddp_spawn"):
        return QuietDDP(start_method="popen" if strategy == "ddp" else "spawn")
    return strategy


def _unwrap(error: BaseException) -> BaseException:
    """Return the ``InputError`` behind an error of a spawned process or of Lightning's checks, or the error itself."""
    if isinstance(error, ProcessRaisedException) and (said := re.search(r"errors\.InputError: (.*)", str(error))):
        return InputError(said[1])
    if isinstance(error, RuntimeError) and (died := worker_died(error)) is not None:
        return died
    if "within local rank has zero length" in str(error):
        return InputError("fewer batches than devices: give fewer devices or a smaller batch size")
    return error


def make_trainer(
    hardware: Hardware, *, progress: bool = True, callbacks: list[Callback] | None = None, **options: Any
) -> Trainer:
    """Make a Trainer without summary, sanity check or padding sampler; the data module shards the indices itself.

    Raises ``InputError`` for devices, accelerators and precisions that this machine does not have.
    """
    devices, num_nodes, strategy = hardware.devices, hardware.num_nodes, hardware.strategy
    if devices < 1 or num_nodes < 1:
        raise InputError(f"devices={devices}, num_nodes={num_nodes}: at least one of each is needed")
    bar: list[Callback] = [StderrProgressBar()] if progress else []
    try:
        return Trainer(
            devices=devices,
            num_nodes=num_nodes,
            accelerator=hardware.accelerator,
            strategy=choose_strategy(strategy, devices, num_nodes),
            precision=hardware.precision or "32-true",  # type: ignore[arg-type]  # checked by Lightning
            callbacks=[*bar, *(callbacks or [])],
            plugins=[WholeCheckpoints()] if strategy in OWN_STRATEGIES else [],  # sharded ones write their own
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # tensors that a model caches must be fit for later training
            **options,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"Lightning refuses these settings: {reason_of(error)}") from error


class _State:
    """Hold a model's device, modes and ``requires_grad`` flags, to restore them later."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.modes = [module.training for module in model.modules()]
        self.flags = [parameter.requires_grad for parameter in model.parameters()]

    def restore(self) -> None:
        self.model.to(self.device)
        for module, mode in zip(self.model.modules(), self.modes, strict=True):
            module.training = mode
        for parameter, flag in zip(self.model.parameters(), self.flags, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def quiet_run(data: LightningDataModule | None, *models: nn.Module | None) -> Iterator[None]:
    """Run Lightning silently on ``models`` and leave them as they were: device, mode, ``requires_grad``.

    ``data`` (None if the module loads its own) is detached from its trainer, which could not be sent to the processes of a
    later run. Raises ``InputError`` also if a spawned process raised it, and ``KeyboardInterrupt`` where Lightning would
    end the whole process.
    """
    states = [_State(model) for model in models if model is not None]
    on_interrupt = signal.getsignal(signal.SIGINT)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        with warnings.catch_warnings():
            silence()
            yield
    except SystemExit as stopped:
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning ignores further ones, and exits
        raise KeyboardInterrupt from None
    except Exception as error:
        cause = _unwrap(error)
        if cause is error:
            raise
        raise cause from None  # one line, not the traceback of another process
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for state in states:
            state.restore()
        if data is not None:
            data.trainer = None
