"""What every training method is: targets for a batch, a loss, and what happens after a step and an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Problem:
    """What a method may know of the training set.

    Attributes:
        soft: [N, C] float32 in [0, 1], the pseudo labels a labelling run gave.
        observed: [N, C] int8, 1 an observed positive, -1 an observed negative, 0 unknown.
        annotated: Whether ``observed`` came from people. Without annotations its positives are CLIP's most
            confident classes, and a method that needs negatives picks them by score.
        expected_positives: Mean number of positives per image that EPR and ROLE hold the network to.
        class_vectors: [C, E] float32 text embeddings of the classes, or None where the run has none.
    """

    soft: Tensor
    observed: Tensor
    annotated: bool = False
    expected_positives: float = 1.5
    class_vectors: Tensor | None = None

    def __post_init__(self) -> None:
        if self.soft.ndim != 2 or self.soft.shape != self.observed.shape:
            raise ValueError(
                f"soft and observed must both be [N, C], got {tuple(self.soft.shape)} and "
                f"{tuple(self.observed.shape)}"
            )

    @property
    def images(self) -> int:
        """N, the number of training images."""
        return self.soft.shape[0]

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.soft.shape[1]


@dataclass(frozen=True)
class Batch:
    """Which images a step looks at.

    Attributes:
        rows: [B] int64 positions in the training set, each at most once.
        epoch: Counted from 1.
        gradient_scale: What a gradient that a method takes out of the loss itself must be multiplied by: the
            loop divides the loss by the number of processes and may multiply it for float16.
    """

    rows: Tensor
    epoch: int
    gradient_scale: float = 1.0


@dataclass(frozen=True)
class Output:
    """What a network says of a batch.

    Attributes:
        logits: [B, C].
        class_features: [B, C, F] one feature vector per class, from heads that make them, else None.
    """

    logits: Tensor
    class_features: Tensor | None = None


Sweep = Callable[[], Iterator[tuple[Tensor, Output]]]
"""Runs the network in evaluation mode over the training set: yields (rows [B], Output) without gradients."""


class LinearHead(nn.Module):
    """Dropout and one linear layer on pooled features."""

    wants_maps: ClassVar[bool] = False

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Output:
        """[B, D] pooled features to logits."""
        return Output(self.linear(self.dropout(features)))


@dataclass(frozen=True)
class NoSettings:
    """A method without settings of its own."""


class Method:
    """Base of all methods. A method owns labels and losses; the network belongs to the loop.

    Subclasses set ``name``, ``supervision`` ("none", "one", "10%" or "all", the row of the comparison table
    it belongs to) and, where they have any, ``Settings``.
    """

    name: ClassVar[str]
    supervision: ClassVar[str]
    wants_maps: ClassVar[bool] = False
    Settings: ClassVar[type[Any]] = NoSettings

    def __init__(self, problem: Problem, settings: Any) -> None:
        self.problem = problem
        self.settings = settings

    def build_head(self, channels: int, dropout: float = 0.0) -> nn.Module:
        """The head on top of a backbone of ``channels`` output channels."""
        return LinearHead(channels, self.problem.classes, dropout)

    def modules(self) -> nn.Module | None:
        """Trainable modules that the loss uses beside the network, or None."""
        return None

    def targets(self, batch: Batch) -> Tensor:
        """[B, C] float32 targets of the batch."""
        raise NotImplementedError

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """The scalar to minimise."""
        raise NotImplementedError

    def after_step(self, output: Output, batch: Batch) -> None:
        """Called after each optimiser step with the output that made it (no gradients)."""

    def after_epoch(self, epoch: int, sweep: Sweep) -> None:
        """Called after each epoch, counted from 1."""

    def labels(self) -> Tensor:
        """[N, C] float32 in [0, 1]: what the method at present believes of the training images."""
        return self.problem.soft

    def state(self) -> dict[str, Tensor]:
        """Tensors to save in a checkpoint beside ``modules()``."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` gave."""


class ObservedMethod(Method):
    """A method that believes the observed positives, and them alone."""

    def targets(self, batch: Batch) -> Tensor:
        """1 for observed positives, 0 for everything else."""
        return (self.problem.observed[batch.rows] == 1).float()

    def labels(self) -> Tensor:
        """The observed positives."""
        return (self.problem.observed == 1).float()


def entropy_terms(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each entry, targets may be soft: [B, C]."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def positive_terms(logits: Tensor, observed: Tensor) -> Tensor:
    """-log p on observed positives, zero elsewhere: [B, C]."""
    return functional.softplus(-logits) * (observed == 1)


def count_penalty(logits: Tensor, expected: float) -> Tensor:
    """((mean over the batch of the summed probabilities) - expected)^2 / C^2."""
    count = logits.sigmoid().sum(dim=1).mean()
    return ((count - expected) / logits.shape[1]).square()


def mean_over(terms: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``terms`` where ``mask`` is true, 0 where it is true nowhere."""
    return (terms * mask).sum() / mask.sum().clamp(min=1)


def mean_with(terms: Tensor, known: Tensor, others: Tensor, added: Tensor) -> Tensor:
    """Mean of ``others`` where ``added`` and of ``terms`` where else ``known`` is true, all entries alike."""
    return mean_over(others.where(added, terms), known | added)


def make_settings(kind: type[Any], method: str, options: Mapping[str, Any]) -> Any:
    """Build a ``Settings`` from name/value pairs; strings are read as the field's type.

    Raises:
        ValueError: For an unknown name or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ValueError(f"method {method} has no setting {name!r}; it has: {known}")
        wanted = type(fields[name].default)
        try:
            values[name] = _read(value, wanted)
        except (TypeError, ValueError):
            raise ValueError(
                f"setting {name} of method {method} must be {wanted.__name__}, got {value!r}"
            ) from None
    return kind(**values)


def _read(value: Any, wanted: type) -> Any:
    if wanted is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ValueError
    if wanted is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return wanted(value)
