"""Training runs as data: which network, which weights, how trained; run side by side, and read by arm and seed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from initwell.apply.write import init_
from initwell.experiments.preparation import Prepared
from initwell.experiments.reproduce.claim import Settings
from initwell.experiments.statistics import Verdict, judge
from initwell.experiments.train import TrainConfig, TrainResult, train
from initwell.experiments.zoo import build
from initwell.initializers.base import Initializer

# The part of the steps at the end over which a final training loss is averaged: single minibatches scatter.
LAST = 0.1
# A net that gives every image one answer stays at ln C. Less than a tenth of it removed is what a loss curve shows as
# "does not converge"; the first tenth is gone as soon as a net uses its images at all.
STALLED = 0.1


@dataclass(frozen=True)
class Training:
    """One run: the same ``config.seed`` draws the weights and orders the samples, so arms pair up seed by seed.

    Attributes:
        arm: what the claim calls it.
        network: its name in the zoo.
        initializer: of every weight; biases start at 0, norms at the identity.
        config: how it is trained.
        options: of the network.
    """

    arm: str
    network: str
    initializer: Initializer
    config: TrainConfig
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    def at(self, *, learning_rate: float | None = None, seed: int | None = None) -> "Training":
        """Return the same run at another learning rate or with another seed."""
        rate = self.config.learning_rate if learning_rate is None else learning_rate
        config = replace(self.config, learning_rate=rate, seed=self.seed if seed is None else seed)
        return replace(self, config=config)


@dataclass(frozen=True)
class Trained:
    """A run and what it gave."""

    training: Training
    result: TrainResult

    @property
    def final_loss(self) -> float:
        """Mean training loss over the last tenth of the steps, in nats; infinite for a run that diverged."""
        curve = self.result.loss_curve
        if self.result.status == "diverged" or not curve:
            return math.inf
        last = curve[-max(1, round(LAST * len(curve))) :]
        return math.fsum(last) / len(last)

    @property
    def test_accuracy(self) -> float:
        """Share of test samples right at the end; NaN where it diverged before its first test."""
        return self.result.test_accuracy[-1] if self.result.test_accuracy else math.nan

    def learnt(self, classes: int) -> float:
        """Share of the loss of a blind guess, ln(classes), that training removed; 0 for a run that diverged.

        A network that gives the same answer to every image cannot get below 0 by more than the class frequencies
        allow; 1 is a loss of 0.
        """
        return max(0.0, 1.0 - self.final_loss / math.log(classes))


def trains(low: float, high: float) -> Verdict:
    """Judge by the interval of ``Trained.learnt`` whether a start trains, does not, or is not settled by the seeds.

    >>> trains(0.5, 0.7), trains(0.0, 0.02), trains(0.05, 0.2)
    ('confirmed', 'refuted', 'depends')
    """
    return judge(low, high, above=STALLED)


def run_training(data: Prepared, training: Training) -> Trained:
    """Build, initialize and train one network."""
    model = build(training.network, data.shape, data.classes, **training.options)
    init_(model, training.initializer, seed=training.seed)
    return Trained(training, train(model, data, training.config))


def run_trainings(settings: Settings, data: Prepared, trainings: Iterable[Training]) -> list[Trained]:
    """Run all of them, one process a core; results in their order."""
    return settings.map(run_training, list(trainings), shared=data)


def grid(arms: Iterable[Training], rates: Sequence[float], seeds: Sequence[int]) -> list[Training]:
    """Return every arm at every learning rate with every seed."""
    return [arm.at(learning_rate=rate, seed=seed) for arm in arms for rate in rates for seed in seeds]


def by_arm(runs: Iterable[Trained]) -> dict[str, list[Trained]]:
    """Group runs by arm, each arm's runs in order of seed."""
    found: dict[str, list[Trained]] = {}
    for run in runs:
        found.setdefault(run.training.arm, []).append(run)
    return {arm: sorted(of_arm, key=lambda run: run.training.seed) for arm, of_arm in found.items()}


def at_best_rate(
    runs: Iterable[Trained], cost: Callable[[Trained], float] = lambda run: run.final_loss
) -> list[Trained]:
    """Keep, for each arm, the runs at the learning rate with the lowest mean cost over seeds.

    Args:
        runs: several arms, rates and seeds; every rate of an arm with the same seeds.
        cost: what to choose by; the final training loss, so that the test images have no part in the choice.

    Returns:
        The runs that are kept, in order of arm and seed. Of equals, the lowest learning rate.
    """
    kept: list[Trained] = []
    for of_arm in by_arm(runs).values():
        rates = sorted({run.training.config.learning_rate for run in of_arm})
        by_rate = {rate: [r for r in of_arm if r.training.config.learning_rate == rate] for rate in rates}
        best = min(rates, key=lambda rate: math.fsum(map(cost, by_rate[rate])) / len(by_rate[rate]))
        kept += by_rate[best]
    return kept


def at_swept_rate(
    settings: Settings, data: Prepared, arms: Sequence[Training], rates: Sequence[float], seeds: Sequence[int]
) -> list[Trained]:
    """Choose each arm's learning rate with one seed, then run it with others.

    The seed that chooses is not among those that count, so that the choice cannot flatter what is reported.

    Args:
        settings: where to run.
        data: what to train on.
        arms: the arms.
        rates: the learning rates to choose from, by the lowest final training loss.
        seeds: those that count.

    Returns:
        The runs that count.
    """
    scout = max(seeds) + 1000
    tried = run_trainings(settings, data, grid(arms, rates, [scout]))
    chosen = {run.training.arm: run.training.config.learning_rate for run in at_best_rate(tried)}
    return run_trainings(
        settings, data, [arm.at(learning_rate=chosen[arm.arm], seed=seed) for arm in arms for seed in seeds]
    )


def smoothed(curve: Sequence[float], over: int) -> tuple[float, ...]:
    """Average a curve over each ``over`` successive steps; a rest at the end is left out.

    >>> smoothed([1.0, 3.0, 5.0, 7.0, 9.0], 2)
    (2.0, 6.0)
    """
    return tuple(math.fsum(curve[k : k + over]) / over for k in range(0, len(curve) - over + 1, over))
