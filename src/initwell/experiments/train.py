"""The one plain training loop: cross-entropy, minibatches in an order of their own seed, everything recorded."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initwell.errors import ArgumentError, ModelError, UnknownNameError
from initwell.experiments.policies import POLICIES, rate_at
from initwell.experiments.preparation import Prepared
from initwell.records import Record
from initwell.trace.keep import random_kept

OPTIMIZERS = ("sgd", "momentum", "adam")
_EVALUATION_BATCH = 1000
# Fields that are whole numbers, and those that are real: their least values.
_WHOLE = MappingProxyType({"epochs": 1, "batch_size": 1, "step_size": 1, "max_steps": 1, "warmup_steps": 0, "seed": 0})
_REAL = MappingProxyType({"momentum": 0, "weight_decay": 0, "gamma": 0, "power": 0})


@dataclass(frozen=True)
class TrainConfig(Record):
    """How to train.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples a step; the rest at an epoch's end makes a smaller step, but a single left-over sample,
            which batch normalization cannot take, is left out.
        optimizer: ``sgd``, ``momentum`` or ``adam``.
        learning_rate: the base rate, above 0.
        momentum: of ``momentum`` alone.
        weight_decay: L2 penalty, added to the gradient.
        policy: ``fixed``, ``step``, ``inv`` or ``cosine``.
        gamma: of ``step`` (factor) and ``inv``.
        power: of ``inv``.
        step_size: steps between the drops of ``step``.
        warmup_steps: steps of linear warm-up.
        seed: of the order of the samples (and of dropout, if the model has any).
        max_steps: stop after so many steps, or None.
        diverges_above: a loss above this counts as diverged.
    """

    epochs: int = 5
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    policy: str = "fixed"
    gamma: float = 0.1
    power: float = 0.75
    step_size: int = 1000
    warmup_steps: int = 0
    seed: int = 0
    max_steps: int | None = None
    diverges_above: float = 1e6

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        rate: Any = self.learning_rate
        if isinstance(rate, bool) or not (isinstance(rate, Real) and math.isfinite(rate) and float(rate) > 0):
            raise ArgumentError("learning_rate", rate, "Give a finite number above 0, such as 0.1.")
        if self.optimizer not in OPTIMIZERS:
            raise UnknownNameError.among("optimizer", str(self.optimizer), OPTIMIZERS)
        if self.policy not in POLICIES:
            raise UnknownNameError.among("policy", str(self.policy), POLICIES)
        for name, least in (*_WHOLE.items(), *_REAL.items()):
            self._refuse(name, least)
        bound: Any = self.diverges_above
        if not (isinstance(bound, Real) and float(bound) > 0):
            raise ArgumentError("diverges_above", bound, "Give a loss above 0.")

    def _refuse(self, name: str, least: int) -> None:
        value: Any = getattr(self, name)
        whole = name in _WHOLE
        if value is None and name == "max_steps":
            return
        number = isinstance(value, Integral if whole else Real) and math.isfinite(value)
        if not number or isinstance(value, bool) or value < least or (name == "seed" and value >= 2**63):
            raise ArgumentError(name, value, f"Give a {'whole' if whole else 'finite'} number from {least}.")


@dataclass(frozen=True)
class Step:
    """What a step callback sees, after the update; the gradients of the step are still in place."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    model: nn.Module
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Epoch:
    """What an epoch callback sees: ``epoch`` counts from 1, the model is in eval mode."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    model: nn.Module


@dataclass(frozen=True)
class TrainResult(Record):
    """What a training run gave.

    Attributes:
        status: ``diverged`` if a loss or parameter was not finite or the loss left the bound; the run stopped there.
        reason: why it diverged, or empty.
        steps: how many minibatches it saw; the last one of a loss that broke the bound made no update.
        train_loss: mean minibatch loss of each finished epoch, in nats.
        train_accuracy: share of training samples right when their turn came, by epoch.
        test_loss: mean loss on the test samples after each epoch, in nats.
        test_accuracy: share of test samples right after each epoch.
        loss_curve: minibatch loss of every step, in nats; the one that broke the bound is the last.
        seconds: wall time.
    """

    status: Literal["done", "diverged"]
    reason: str
    steps: int
    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    test_loss: tuple[float, ...]
    test_accuracy: tuple[float, ...]
    loss_curve: tuple[float, ...]
    seconds: float

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "TrainResult":
        """Rebuild a result from ``to_dict()`` or its JSON ('nan' and 'inf' as strings)."""
        curves = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "loss_curve")
        numbers = {name: tuple(float(v) for v in kept[name]) for name in curves}
        return cls(kept["status"], kept["reason"], int(kept["steps"]), **numbers, seconds=float(kept["seconds"]))


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the share of samples right, in eval mode, then restore the mode.

    Args:
        model: gives (N, classes) logits.
        x: (N, …) samples.
        y: (N,) class numbers.
    """
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    loss = right = 0.0
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(x), _EVALUATION_BATCH):
                targets = y[start : start + _EVALUATION_BATCH].to(device)
                logits = model(x[start : start + _EVALUATION_BATCH].to(device))
                loss += F.cross_entropy(logits, targets, reduction="sum").item()
                right += (logits.argmax(1) == targets).sum().item()
    finally:
        for module, training in modes:
            module.training = training
    return loss / len(x), right / len(x)


def train(
    model: nn.Module,
    data: Prepared,
    config: TrainConfig,
    *,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainResult:
    """Train a classifier in place.

    Args:
        model: takes (B, *shape), gives (B, classes) logits; trained on the device where it lies.
        data: the tensors.
        config: how.
        on_step: called after every update.
        on_epoch: called after every epoch's evaluation.

    Returns:
        The curves and how it ended. The global generators and the model's train/eval mode come back as they were.

    Raises:
        ModelError: the model has nothing to train, or its own forward failed.
    """
    run = _Run(model, data, config, on_step, on_epoch)
    modes = [(module, module.training) for module in model.modules()]
    started = time.perf_counter()
    try:
        with random_kept(config.seed):
            reason = run.train()
    finally:
        for module, training in modes:
            module.training = training
    return TrainResult(
        status="diverged" if reason else "done",
        reason=reason,
        steps=len(run.losses),
        train_loss=tuple(epoch[0] for epoch in run.epochs),
        train_accuracy=tuple(epoch[1] for epoch in run.epochs),
        test_loss=tuple(epoch[2] for epoch in run.epochs),
        test_accuracy=tuple(epoch[3] for epoch in run.epochs),
        loss_curve=tuple(run.losses),
        seconds=time.perf_counter() - started,
    )


class _Run:
    def __init__(
        self,
        model: nn.Module,
        data: Prepared,
        config: TrainConfig,
        on_step: Callable[[Step], None] | None,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ModelError("model: has no parameters to train. Give a model with at least one that requires grad.")
        self.model, self.data, self.config = model, data, config
        self.on_step, self.on_epoch = on_step, on_epoch
        self.device = parameters[0].device
        self.train_x, self.train_y = data.train_x.to(self.device), data.train_y.to(self.device)
        self.optimizer = _optimizer(parameters, config)
        self.parameters = parameters
        self.order = torch.Generator().manual_seed(config.seed)
        sizes = len(data.train_x), min(config.batch_size, len(data.train_x))
        self.per_epoch = sizes[0] // sizes[1] + (sizes[0] % sizes[1] > 1)
        self.total = min(config.epochs * self.per_epoch, config.max_steps or config.epochs * self.per_epoch)
        self.losses: list[float] = []
        self.epochs: list[tuple[float, float, float, float]] = []

    def train(self) -> str:
        for epoch in range(1, self.config.epochs + 1):
            if len(self.losses) >= self.total:
                break
            self.model.train()
            first, right, seen = len(self.losses), 0, 0
            for index in self._batches():
                loss, hits = self._step(epoch, index)
                if trouble := self._trouble("loss", loss, len(self.losses) - 1):
                    return trouble
                right, seen = right + hits, seen + len(index)
            losses = self.losses[first:]
            test_loss, test_accuracy = self._evaluate()
            self.epochs.append((math.fsum(losses) / len(losses), right / seen, test_loss, test_accuracy))
            if trouble := self._trouble("test loss", test_loss, len(self.losses)) or self._broken_parameter():
                return trouble
            if self.on_epoch:
                self.model.eval()
                self.on_epoch(Epoch(epoch, len(self.losses), *self.epochs[-1], model=self.model))
        return ""

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.train_x), generator=self.order).to(self.device)
        for start in range(0, self.per_epoch * self.config.batch_size, self.config.batch_size):
            if len(self.losses) >= self.total:
                return
            yield order[start : start + self.config.batch_size]

    def _step(self, epoch: int, index: Tensor) -> tuple[float, int]:
        step = len(self.losses)
        rate = rate_at(self.config, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, y = self.train_x.index_select(0, index), self.train_y.index_select(0, index)
        self.optimizer.zero_grad()
        logits = self._forward(x)
        loss = F.cross_entropy(logits, y)
        value = loss.item()
        self.losses.append(value)
        if self._trouble("loss", value, step):
            return value, 0
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.on_step:
            self.on_step(Step(step, epoch, value, rate, self.model, x, y))
        return value, int((logits.detach().argmax(1) == y).sum())

    def _forward(self, x: Tensor) -> Tensor:
        try:
            logits = self.model(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"model: its forward failed on samples of shape {tuple(x.shape)}: {error}") from error
        classes = self.data.classes
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ModelError(f"model: its output is {got}; give (batch, {classes}) logits, one for each class.")
        return logits

    def _evaluate(self) -> tuple[float, float]:
        return evaluate(self.model, self.data.test_x, self.data.test_y)

    def _trouble(self, what: str, value: float, step: int) -> str:
        if not math.isfinite(value):
            return f"the {what} became {value} at step {step}"
        if value > self.config.diverges_above:
            return f"the {what} rose to {value:.4g}, above {self.config.diverges_above:.4g}, at step {step}"
        return ""

    def _broken_parameter(self) -> str:
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"the parameter {name} is no longer finite after step {len(self.losses)}"
        return ""


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    momentum = config.momentum if config.optimizer == "momentum" else 0.0
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
