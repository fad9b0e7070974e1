"""Var(wx) = Var(w)·Var(x) and n such terms add: sampled, and what a mean adds, on real images too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import ratio_over_seeds, verdict_of, within
from initwell.experiments.reproduce.images import flat_images
from initwell.experiments.statistics import Verdict
from initwell.initializers.distributions import Normal, Uniform
from initwell.sampling.fill import fill

Array = NDArray[np.float64]
Draw = Callable[[int, int, str], Array]

# A rule of algebra has no room for error, a sample has: 2 % is four times the scatter of the noisiest case below
# (about 0.5 % over all seeds), and a factor 1.04 per layer would already be a factor 7 over 50 layers.
TOLERANCE = 0.02
TERMS = (1, 4, 16, 64)
MEANS = (0.0, 0.5, 1.0, 2.0)
OFFSETS = (0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Case:
    """One piece of evidence: measured variance over the plain rule, and what the full formula says it should be."""

    case: str
    judged: bool  # whether the claim's conditions (zero means, independence) are met
    predicted: float  # of measured / plain rule; 1 where the conditions are met, more where a mean adds
    ratios: tuple[float, ...]  # one per seed


def _normal(seed: int, size: int, name: str) -> Array:
    return fill(Normal(0.0, 1.0), (size,), seed=seed, name=name).astype(np.float64)


def _uniform(seed: int, size: int, name: str) -> Array:
    edge = 3.0**0.5
    return fill(Uniform(-edge, edge), (size,), seed=seed, name=name).astype(np.float64)


def _skewed(seed: int, size: int, name: str) -> Array:
    # Exponential less its mean: mean 0, variance 1, and nothing symmetric about it.
    half_step = 2.0**-26  # float32 may round a uniform number up to 1, whose logarithm would be infinite
    u = fill(Uniform(0.0, 1.0), (size,), seed=seed, name=name).astype(np.float64)
    return -np.log1p(-np.clip(u, half_step, 1.0 - half_step)) - 1.0


DRAWS: Mapping[str, Draw] = {"normal": _normal, "uniform": _uniform, "skewed": _skewed}


def products(seeds: int, size: int) -> list[Case]:
    """Compare Var(wx) with Var(w)·Var(x) for independent w and x of mean 0, and once for w = x."""
    cases = []
    for w_kind, x_kind in (("normal", "normal"), ("uniform", "normal"), ("skewed", "uniform"), ("skewed", "skewed")):
        ratios = []
        for seed in range(seeds):
            w, x = DRAWS[w_kind](seed, size, "w"), DRAWS[x_kind](seed, size, "x")
            ratios.append(float(np.var(w * x)))
        cases.append(Case(f"product: {w_kind} w, {x_kind} x", True, 1.0, tuple(ratios)))
    same = tuple(float(np.var(_normal(seed, size, "w") ** 2)) for seed in range(seeds))
    # Var(z²) = E[z⁴] − 1 = 2.
    cases.append(Case("product: x is w itself (normal)", False, 2.0, same))
    return cases


def sums(seeds: int, size: int) -> list[Case]:
    """Compare the variance of n added products with n times that of one."""
    ratios: dict[int, list[float]] = {terms: [] for terms in TERMS}
    for seed in range(seeds):
        product = _normal(seed, size, "w") * _uniform(seed, size, "x")
        for terms, found in ratios.items():
            found.append(float(np.var(product.reshape(-1, terms).sum(axis=1))) / terms)
    return [Case(f"sum of {terms}", True, 1.0, tuple(found)) for terms, found in ratios.items()]


def means(seeds: int, size: int) -> list[Case]:
    """Compare Var(wx) with the plain rule where the means are not 0: E[w]² Var(x) + E[x]² Var(w) is added."""
    pairs = [*((0.0, mean_x) for mean_x in MEANS), (1.0, 1.0)]
    ratios: dict[tuple[float, float], list[float]] = {pair: [] for pair in pairs}
    for seed in range(seeds):
        w, x = _normal(seed, size, "w"), _uniform(seed, size, "x")
        for (mean_w, mean_x), found in ratios.items():
            found.append(float(np.var((w + mean_w) * (x + mean_x))))
    return [
        Case(f"mean of w {mean_w:g}, of x {mean_x:g}", mean_w == mean_x == 0, 1 + mean_w**2 + mean_x**2, tuple(found))
        for (mean_w, mean_x), found in ratios.items()
    ]


def on_images(level: Array, means: Mapping[str, float], seeds: int, units: int) -> list[Case]:
    """Compare a layer's output variance on images with n·Var(w)·Var(x), the weights N(0, 1/n).

    The pixels of an image are anything but independent of one another; the terms add all the same, since the weights
    are independent and of mean 0. What the plain rule misses is the mean alone.

    Args:
        level: images of mean 0 and variance 1 over all pixels, shape (samples, pixels).
        means: by name, what is added to every pixel, in standard deviations: raw pixels are such images too.
        seeds: how many draws.
        units: outputs of the layer.
    """
    n = level.shape[1]
    ratios: dict[str, list[float]] = {name: [] for name in means}
    for seed in range(seeds):
        w = fill(Normal(0.0, n**-0.5), (units, n), seed=seed, name="images.weight").astype(np.float64)
        outputs, sums_of_weights = level @ w.T, w.sum(axis=1)
        for name, mean in means.items():
            ratios[name].append(float(np.mean((outputs + mean * sums_of_weights) ** 2)))
    return [Case(f"images, {name}", mean == 0, 1 + mean**2, tuple(ratios[name])) for name, mean in means.items()]


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict: rows that meet the claim's conditions must lie within the tolerance of the plain rule."""
    return verdict_of([within(r["low"], r["high"], 1 - TOLERANCE, 1 + TOLERANCE) for r in rows if r["judged"]])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence whether the rule holds under its conditions, and what comes of leaving them."""
    head = {
        "confirmed": "For means of 0 and independence variances multiply and add as the rule says",
        "refuted": "Even for means of 0 and independence variances do not multiply and add as the rule says",
        "depends": "For means of 0 and independence the rule holds in some cases and not, or not surely, in others",
    }[judge(rows)]
    outside = [r for r in rows if not r["judged"]]
    more = "; a mean or a dependence adds to the variance" if all(r["low"] > 1 + TOLERANCE for r in outside) else ""
    return f"{head}{more}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    inside = [r for r in rows if r["judged"]]
    outside = [r for r in rows if not r["judged"]]
    raw = next(r for r in rows if r["case"] == "images, raw pixels")
    worst = max(abs(r["value"] / r["predicted"] - 1) for r in outside)
    return (
        f"{conclusion(rows)} Measured over predicted is {min(r['low'] for r in inside):.3f} to "
        f"{max(r['high'] for r in inside):.3f} in the {len(inside)} cases that meet the conditions, sums of up to "
        f"{max(TERMS)} terms among them. Raw pixels have a mean, and a layer's output, over units and images, has "
        f"{raw['value']:.2f} ({raw['low']:.2f} to {raw['high']:.2f}) times the variance the plain rule gives, where "
        f"E[x²]/Var(x) is {raw['predicted']:.2f}. With E[w]²Var(x) + E[x]²Var(w) added, or E[z⁴] for x = w, "
        f"every case outside the conditions comes out within {100 * worst:.1f} %."
    )


def _chart(rows: Sequence[Mapping[str, Any]], offsets: Sequence[Mapping[str, Any]], raw_mean: float) -> Chart:
    def points(label: str, x: Sequence[float], found: Sequence[Mapping[str, Any]], scale: Sequence[float]) -> Series:
        y, low, high = (tuple(r[k] * s for r, s in zip(found, scale, strict=True)) for k in ("value", "low", "high"))
        return Series(label, tuple(x), y, low, high, "points")

    added = [r for r in rows if r["case"].startswith("sum")]
    shifted = [r for r in rows if r["case"].startswith("mean of w 0,")]
    raw = next(r for r in rows if r["case"] == "images, raw pixels")
    curve = tuple(np.linspace(0, 2, 41).tolist())
    one_plus = tuple(1 + m * m for m in curve)
    n = [float(t) for t in TERMS]
    return Chart(
        "variance-rules",
        "Variances multiply and add, as long as the means are zero",
        "Left: n products add up to n times one. Middle and right: a mean of x multiplies the output's variance by "
        "1 + (mean/std)², in samples and on images alike.",
        (
            Panel(
                "n terms",
                "terms n",
                "Var(Σ wx) / Var(w)Var(x)",
                (Series("sum, theory", tuple(n), tuple(n)), points("sum, measured", n, added, n)),
                True,
                True,
            ),
            Panel(
                "a mean, sampled",
                "E[x] / std(x)",
                "Var(wx) / Var(w)Var(x)",
                (
                    Series("1 + (mean/std)², theory", curve, one_plus),
                    points("1 + (mean/std)², measured", MEANS, shifted, [1.0] * len(MEANS)),
                ),
            ),
            Panel(
                "a mean, on images",
                "mean / std of the pixels",
                "Var(y) / n Var(w)Var(x)",
                (
                    Series("1 + (mean/std)², theory", curve, one_plus),
                    points("images, mean shifted", OFFSETS, offsets, [1.0] * len(OFFSETS)),
                    points("raw pixels", [raw_mean], [raw], [1.0]),
                ),
            ),
        ),
    )


def _row(case: Case) -> dict[str, Any]:
    found = ratio_over_seeds(case.ratios)
    return {"case": case.case, "judged": case.judged, "n": len(case.ratios), **found, "predicted": case.predicted}


def run(settings: Settings) -> Finding:
    """Sample the rules, then put real images through fresh weights."""
    seeds, size = 4 * settings.seeds, 2**18 if settings.quick else 2**21
    raw = flat_images(settings, "scale", 1000)
    level = (raw - raw.mean()) / raw.std()
    raw_mean = float(raw.mean() / raw.std())
    offsets = {f"shifted by {m:g} std": m for m in OFFSETS}
    on = on_images(level, {"standardized": 0.0, "raw pixels": raw_mean, **offsets}, seeds, 1024)
    cases = [*products(seeds, size // 2), *sums(seeds, size), *means(seeds, size // 2)]
    found = [_row(case) for case in [*cases, *on]]
    rows, shifted = found[: -len(OFFSETS)], found[-len(OFFSETS) :]
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (_chart(rows, shifted, raw_mean),),
        conditions={
            "seeds": seeds,
            "images": len(raw),
            "products a seed": size,
            "tolerance": TOLERANCE,
        },
    )


CLAIM = Claim(
    name="variance-rules",
    title="Variances multiply and add",
    claim="For independent w and x of mean 0, Var(wx) = Var(w)·Var(x), and n such terms add: Var(y) = n·Var(w)·Var(x).",
    source="The first step of every tutorial on Xavier initialization; Glorot & Bengio (2010), equation 5",
    run=run,
)
