"""Learning rate by step: Caffe's formulas, the cosine, and a linear warm-up before any of them."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from initwell.experiments.train import TrainConfig


def _fixed(config: "TrainConfig", step: int, total: int) -> float:
    return 1.0


def _step(config: "TrainConfig", step: int, total: int) -> float:
    return float(config.gamma ** (step // config.step_size))


def _inv(config: "TrainConfig", step: int, total: int) -> float:
    return float((1.0 + config.gamma * step) ** -config.power)


def _cosine(config: "TrainConfig", step: int, total: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / max(total, 1)))


POLICIES: Mapping[str, Callable[["TrainConfig", int, int], float]] = MappingProxyType(
    {"fixed": _fixed, "step": _step, "inv": _inv, "cosine": _cosine}
)


def rate_at(config: "TrainConfig", step: int, total: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: base rate, policy and its numbers.
        step: the step, from 0; the policy counts from 0 on through the warm-up, as Caffe's iteration does.
        total: how many steps there will be; only ``cosine`` uses it.

    Returns:
        base · policy(step): ``fixed`` 1; ``step`` gamma^floor(step/step_size); ``inv`` (1 + gamma·step)^(-power);
        ``cosine`` (1 + cos(π·step/total))/2. During a warm-up of w steps it is multiplied by (step+1)/w.

    Source: Caffe, ``src/caffe/solvers/sgd_solver.cpp``, GetLearningRate; Loshchilov and Hutter (2017), "SGDR", eq. 5.

    >>> from initwell.experiments.train import TrainConfig
    >>> rate_at(TrainConfig(learning_rate=0.1, policy="step", gamma=0.5, step_size=10), step=25, total=100)
    0.025
    """
    rate = config.learning_rate * POLICIES[config.policy](config, step, total)
    return rate * (step + 1) / config.warmup_steps if step < config.warmup_steps else rate
