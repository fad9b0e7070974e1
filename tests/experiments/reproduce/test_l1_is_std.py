"""l1-is-std: the verdict on made-up ratios, closed forms against samples and quadrature."""

from typing import Any

import pytest
from scipy import integrate, stats

from initwell.experiments.reproduce.l1_is_std import DISTRIBUTIONS, judge, judge_row, sampled, statement
from initwell.experiments.reproduce.wording import first_sentence


def row(low: float, high: float, where: str = "relu MLP", tensor: str = "weight") -> dict[str, Any]:
    value = (low + high) / 2
    return {"where": where, "stage": "start", "tensor": tensor, "value": value, "lowest": low, "highest": high,
            "judgement": judge_row([{"low": low, "high": high}])}  # fmt: skip


@pytest.mark.parametrize(
    ("real", "verdict"),
    [
        ([(0.78, 0.82), (0.6, 0.7)], "confirmed"),
        ([(3.0, 4.0), (0.1, 0.2)], "refuted"),
        ([(0.78, 0.82), (3.0, 4.0)], "depends"),
        ([(0.4, 0.6)], "depends"),
    ],
)
def test_verdict_from_numbers(real: list[tuple[float, float]], verdict: str) -> None:
    rows = [row(0.797, 0.799, "distribution", "normal"), *(row(*r) for r in real)]
    assert judge(rows) == verdict
    assert "0.7980" in statement(rows)
    words = {
        "confirmed": "always for weights.",
        "refuted": "never for weights.",
        "depends": "not always, or not surely",
    }
    assert words[verdict] in first_sentence(statement(rows))


def test_kinds_of_tensor_are_told_apart() -> None:
    rows = [row(0.797, 0.799, "distribution", "normal"), row(0.7, 0.8), row(3.0, 4.0, tensor="after φ")]
    assert first_sentence(statement(rows)) == (
        "Within a factor 2 mean|x| can be read as the std always for weights; never for what leaves φ."
    )


def test_layers_that_disagree_leave_a_tensor_open() -> None:
    assert judge_row([{"low": 0.7, "high": 0.8}, {"low": 3.0, "high": 3.1}]) == "open"


@pytest.mark.parametrize("name", list(DISTRIBUTIONS))
def test_closed_forms_agree_with_samples(name: str) -> None:
    # 131,072 numbers: mean|x|/std scatters by about 0.2 %.
    assert sampled(name, 0) == pytest.approx(DISTRIBUTIONS[name], rel=0.012)


def test_closed_forms_agree_with_quadrature() -> None:
    normal = stats.norm(3.0, 1.0)
    mean_abs, _ = integrate.quad(lambda x: abs(x) * normal.pdf(x), -9, 15, points=[0.0])
    assert DISTRIBUTIONS["normal, mean 3 std"] == pytest.approx(mean_abs, rel=1e-9)
    assert DISTRIBUTIONS["normal"] == pytest.approx(0.79788456, rel=1e-8)
