"""The training loop: network steps, the method's moves, evaluation. All randomness depends on the position.

The order of photos comes from (seed, epoch), a photo's augmentation from (seed, epoch, row), dropout from
(seed, epoch, batch, process). A run that starts again from a saved position thus repeats an unbroken one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdul_fast.scoring.metrics import average_precision
from cdul_fast.training.batches import Batches
from cdul_fast.training.distributed import World
from cdul_fast.training.methods.base import Batch, Method, Output
from cdul_fast.training.optim import MovingAverage, learning_rate_factor, make_optimizer

_EVALUATION_BATCH = 256
STAGES = ("load", "forward", "backward", "step", "labels", "evaluate")
"""What the loop's time is counted by; they follow one another, so they add up to the time of training.

``load`` is waiting for photos, wherever they are waited for (the readers work meanwhile), ``labels`` the
method's move after an epoch and the passes it needs. On a GPU the queue of work makes forward and backward
blur into each other; each step waits for its loss.
"""
_NETWORK_STAGES = ("forward", "backward", "step")


@dataclass(frozen=True)
class LoopSettings:
    """How the loop trains; `cdul_fast.training.config.TrainConfig` documents the fields."""

    epochs: int = 60
    batch_size: int = 64
    lr: float = 1e-3
    head_lr_factor: float = 1.0
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup_share: float = 0.0
    ema: float = 0.0
    accumulate: int = 1
    precision: str = "fp32"
    seed: int = 0


class Standardise(nn.Module):
    """(x - mean) / std per channel, of pooled features [B, D] or maps [B, D, h, w]; at first the identity.

    Channels of a frozen backbone differ in size by orders of magnitude. A head on them as they are learns the
    small ones last, and the label step of CDUL would follow a network that has not learned yet.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.factor: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("factor", torch.ones(channels))

    def fit(self, features: Tensor) -> None:
        """Take mean and deviation of pooled features [N, D] or maps [N, D, h, w] of the training set."""
        pooled = features.float() if features.ndim == 2 else features.float().mean((2, 3))
        self.mean.copy_(pooled.mean(0))
        self.factor.copy_(1 / pooled.std(0).clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Standardised features of the same shape."""
        if features.ndim == 2:
            return (features - self.mean) * self.factor
        return (features - self.mean[:, None, None]) * self.factor[:, None, None]


class Network(nn.Module):
    """A backbone (or none, on stored features), the scaling of its features, and a head."""

    def __init__(self, backbone: Any, head: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.scaling = Standardise(channels)
        self.head = head

    def forward(self, inputs: Tensor) -> Output:
        """Photos [B, 3, S, S], or stored features, to the head's output."""
        if self.backbone is not None:
            wants_maps = getattr(self.head, "wants_maps", False)
            inputs = self.backbone.maps(inputs) if wants_maps else self.backbone(inputs)
        output: Output = self.head(self.scaling(inputs))
        return output


@dataclass
class Position:
    """Where training stands: epochs done, and steps done in the epoch that runs."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Loop:
    """Trains a network with a method.

    Args:
        network: Backbone and head; on ``world.device``.
        method: Made for the same training set.
        data: Inputs of the training set.
        settings: How to train.
        world: The processes.
        run_network: What computes a training output; the compiled network, say. ``network`` when None.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        data: Batches,
        settings: LoopSettings,
        world: World | None = None,
        run_network: Callable[[Tensor], Output] | None = None,
    ) -> None:
        self.network, self.method, self.data = network, method, data
        self.settings = settings
        self.world = world or World()
        self.position = Position()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.photos = 0  # trained on so far, each as often as it was
        self.steps_seconds = 0.0  # of the epochs' steps, with what they waited for
        self._counted = 0.0  # seconds that stages within the stage at hand took
        self._run = network if run_network is None else run_network
        own = method.modules()
        head = [*network.head.parameters(), *(own.parameters() if own is not None else ())]
        body = [] if network.backbone is None else list(network.backbone.parameters())
        self._parameters = [parameter for parameter in (*head, *body) if parameter.requires_grad]
        self.world.same_start(parameter.data for parameter in self._parameters)
        self.optimizer = make_optimizer(
            settings.optimizer,
            [parameter for parameter in head if parameter.requires_grad],
            [parameter for parameter in body if parameter.requires_grad],
            lr=settings.lr,
            head_factor=settings.head_lr_factor,
            decay=settings.weight_decay,
        )
        self.average = MovingAverage(network, settings.ema) if settings.ema else None
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=settings.precision == "fp16")

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.data) // (self.settings.batch_size * self.settings.accumulate))

    @property
    def best_network(self) -> Network:
        """The network to evaluate and keep: the moving average where there is one."""
        return self.network if self.average is None else _as_network(self.average.network)

    def epoch_rows(self, epoch: int) -> list[Tensor]:
        """The micro-batches of an epoch (counted from 1), as rows of the training set."""
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.data))
        return list(torch.split(torch.from_numpy(order), self.settings.batch_size))

    def train_epoch(self, after_step: Callable[[], None] | None = None) -> None:
        """Finish the epoch that the position stands in.

        Args:
            after_step: Called after every optimiser step, with the position moved on.
        """
        settings, position = self.settings, self.position
        epoch = position.epoch + 1
        everything = self.epoch_rows(epoch)
        first = position.step * settings.accumulate
        todo = everything[first:]
        inputs = self.data.read([self.world.share(rows) for rows in todo], epoch, train=True)
        self.network.train()
        start = time.perf_counter()
        made: list[tuple[Output, Batch]] = []
        for place, rows in enumerate(todo, first):
            with self._timed("load"):
                images = next(inputs)
            self._seed(_mix(settings.seed, epoch, place, self.world.rank))
            group = min(settings.accumulate, len(everything) - position.step * settings.accumulate)
            made.append(self._forward_backward(rows, images, epoch, group))
            if len(made) == group:
                with self._timed("step"):
                    self._step(made)
                made = []
                if after_step is not None:
                    after_step()
        next(inputs, None)  # lets the readers end
        self.steps_seconds += time.perf_counter() - start
        with self._timed("labels"):
            self.method.after_epoch(epoch, self.sweep)
        position.epoch, position.step = epoch, 0

    def close_epoch(self, more: dict[str, Any]) -> dict[str, Any]:
        """Add the finished epoch to the history; returns its entry."""
        entry = {
            "epoch": self.position.epoch,
            "loss": self.position.loss_sum / self.steps_per_epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            **more,
        }
        self.position.loss_sum = 0.0
        self.position.history.append(entry)
        return entry

    def _forward_backward(self, rows: Tensor, images: Tensor, epoch: int, group: int) -> tuple[Output, Batch]:
        scale = float(self.scaler.get_scale()) if self.scaler.is_enabled() else 1.0
        batch = Batch(rows.to(self.world.device), epoch, self.world.size * group / scale)
        self.photos += len(rows)
        with self._timed("forward"):
            with self._autocast():
                own = self._run(images)
            output = self.world.gather(_to_float(own), len(rows))
            loss = self.method.loss(output, self.method.targets(batch), batch)
        with self._timed("backward"):
            scaled: Any = self.scaler.scale(loss / (self.world.size * group))
            scaled.backward()
            self.position.loss_sum += float(loss.detach()) / group
        detached = None if output.class_features is None else output.class_features.detach()
        return Output(output.logits.detach(), detached), batch

    def _step(self, made: list[tuple[Output, Batch]]) -> None:
        position, settings = self.position, self.settings
        total = settings.epochs * self.steps_per_epoch
        done = position.epoch * self.steps_per_epoch + position.step
        factor = learning_rate_factor(settings.schedule, done / total, warmup=settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.world.sum_gradients(self._parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for output, batch in made:
                self.method.after_step(output, batch)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.network)
        position.step += 1

    def sweep(self) -> Iterator[tuple[Tensor, Output]]:
        """The network in evaluation mode over the training set: (rows, Output of all processes)."""
        yield from self.outputs(self.data, self.network)

    @torch.no_grad()
    def outputs(self, data: Batches, network: Network) -> Iterator[tuple[Tensor, Output]]:
        """Outputs for all rows of some inputs, in order, in evaluation mode."""
        network.eval()
        size = max(_EVALUATION_BATCH, self.settings.batch_size)
        parts = list(torch.split(torch.arange(len(data)), size))
        inputs = data.read([self.world.share(rows) for rows in parts], 0, train=False)
        for rows in parts:
            with self._timed("load"):
                images = next(inputs)
            with self._autocast():
                own = network(images)
            yield rows.to(self.world.device), self.world.gather(_to_float(own), len(rows))
        next(inputs, None)  # lets the readers end

    def predict(self, data: Batches) -> np.ndarray:
        """Probabilities [N, C] float32 of the best network."""
        network = self.best_network
        with self._timed("evaluate"):
            logits = [output.logits.cpu() for _, output in self.outputs(data, network)]
        return np.asarray(torch.cat(logits).sigmoid().numpy(), np.float32)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Count the time of the block, without what a stage inside it counts."""
        start, outside = time.perf_counter(), self._counted
        self._counted = 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.seconds[stage] += seconds - self._counted
            self._counted = outside + seconds

    def _seed(self, number: int) -> None:
        """Seed the generators of this device (``torch.manual_seed`` costs more than a step of a head)."""
        torch.default_generator.manual_seed(number)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.settings.precision)
        if kind is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=kind)


def limiting_stage(seconds: Mapping[str, float]) -> str:
    """What training spent most of its time on: ``load``, ``network`` (forward, backward and step) or another.

    Args:
        seconds: By stage, those of `STAGES` and any others.
    """
    grouped = {stage: value for stage, value in seconds.items() if stage not in _NETWORK_STAGES}
    grouped["network"] = sum(seconds[stage] for stage in _NETWORK_STAGES)
    return max(grouped, key=lambda stage: grouped[stage])


def mean_average_precision(scores: np.ndarray, truth: np.ndarray, least: int = 1) -> tuple[float, np.ndarray]:
    """Macro AP over the classes with at least ``least`` positives, and AP per class (NaN for the others).

    Args:
        scores: [N, C].
        truth: [N, C], 1 present, 0 absent, -1 not to be judged.
        least: Fewest positives of a class that counts.

    Returns:
        mAP in percent (NaN without any such class), and [C] in percent.
    """
    found = np.asarray(average_precision(np.ascontiguousarray(scores, np.float32), truth.astype(np.int8)))
    found = np.where((truth == 1).sum(axis=0) >= least, 100 * found, np.nan)
    return (float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")), found


def _to_float(output: Output) -> Output:
    features = output.class_features
    return Output(output.logits.float(), None if features is None else features.float())


def _as_network(module: nn.Module) -> Network:
    assert isinstance(module, Network)
    return module


def _mix(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
