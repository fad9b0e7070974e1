"""Charts are drawn for every odd input, say what they cannot show, and leave matplotlib as it was."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from initwell.charts import Chart, Panel, Series
from initwell.errors import ArgumentError
from initwell.report.axes import power_label
from initwell.report.palette import SERIES, series_colours
from initwell.report.plots import draw, inline_svg

HOSTILE = ["<script>alert(1)</script>", "\"&'", "$\\frac{", "_hidden", "初始化", "a\x00b\nc", "é" * 300, ""]


def chart(*series: Series, y_log: bool = False, title: str = "panel") -> Chart:
    return Chart("c", "A chart", "What to see.", (Panel(title, "x", "y", series, y_log=y_log),))


def line(label: str = "a", y: tuple[float, ...] = (1.0, 2.0, 3.0), **rest: Any) -> Series:
    return Series(label, tuple(float(i) for i in range(len(y))), y, **rest)


def text_of(svg: str) -> str:
    return " ".join(t for t in ET.fromstring(svg).itertext() if t.strip())


def pixels(path: Path) -> "np.ndarray[Any, Any]":
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has_colour(image: "np.ndarray[Any, Any]", colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(image.astype(int) - wanted).max(axis=-1) < 24).any())


@pytest.mark.parametrize("label", HOSTILE)
def test_any_name_is_drawn_and_stays_valid_xml(label: str, tmp_path: Path) -> None:
    odd = chart(line(label), title=label)
    assert draw(odd, tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    svg = inline_svg(odd, "p")
    shown = "".join(c if c.isprintable() else " " for c in label)
    assert "<script" not in svg
    assert shown[:50] in text_of(svg)


@pytest.mark.parametrize("style", ["line", "points", "both", "dashed", "bars"])
@pytest.mark.parametrize("y_log", [False, True])
def test_every_style_leaves_its_colour_on_the_picture(style: Any, y_log: bool, tmp_path: Path) -> None:
    plain = line(y=(1.0, 3.0, 2.0), low=(0.5, 2.0, -1.0), high=(2.0, 4.0, 3.0), style=style)
    image = pixels(draw(chart(plain, y_log=y_log), tmp_path / "c.png"))
    assert has_colour(image, SERIES[0]) or style == "bars"
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("values", "y_log", "said"),
    [
        ((1.0, math.inf, 2.0), False, "infinite"),
        ((1.0, math.nan, 2.0), False, "not a number"),
        ((1.0, 0.0, 1e-30), True, "zero or less"),
        ((0.0, 0.0, 0.0), True, "zero or less"),
        ((math.nan,) * 3, True, "not a number"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_the_figure(values: tuple[float, ...], y_log: bool, said: str) -> None:
    assert said in text_of(inline_svg(chart(line(y=values), y_log=y_log), "p"))


def test_a_chart_of_plain_numbers_says_nothing_of_marks() -> None:
    assert "At the edge" not in text_of(inline_svg(chart(line()), "p"))


@pytest.mark.parametrize("values", [(5e-324, 1e308), (1e-45, 1e-44, 2e-44), (3.0, 3.0), (1.0,)])
def test_log_axes_have_between_one_and_nine_ticks(values: tuple[float, ...], tmp_path: Path) -> None:
    svg = ET.fromstring(inline_svg(chart(line(y=values), y_log=True), "p"))
    ticks = [e for e in svg.iter() if "ytick" in e.attrib.get("id", "")]
    assert 1 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (Chart("c", "t", "", ()), "chart 'c'"),
        (Chart("c", "t", "", (Panel("P", "x", "y", ()),)), "panel 'P'"),
        (chart(Series("empty one", (), ())), "series 'empty one'"),
        (chart(Series("uneven", (1.0, 2.0), (1.0,))), "1 values in y for 2"),
        (chart(Series("band", (1.0,), (1.0,), low=(0.0, 0.0), high=(1.0,))), "2 values in low"),
    ],
)
def test_an_empty_chart_is_an_error_that_names_it(bad: Chart, names: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=names):
        draw(bad, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_theory_and_measured_share_a_colour_and_a_legend_entry() -> None:
    both = chart(line("xavier, theory"), line("xavier, measured", style="points"), line("kaiming, theory"))
    svg = text_of(inline_svg(both, "p"))
    assert "Line: theory. Points: measured." in svg
    assert "xavier, measured" not in svg
    assert "kaiming, theory" in svg


def test_up_to_eight_series_are_told_apart_and_more_form_a_ramp() -> None:
    for count in (1, 8, 9, 40):
        colours = series_colours([f"s{i}" for i in range(count)])
        assert len(set(colours.values())) == count


def test_the_same_chart_gives_the_same_bytes_and_unique_ids(tmp_path: Path) -> None:
    one = chart(line(), line("b"))
    assert inline_svg(one, "f1") == inline_svg(one, "f1")
    assert draw(one, tmp_path / "a.png").read_bytes() == draw(one, tmp_path / "b.png").read_bytes()
    ids = [[e.attrib["id"] for e in ET.fromstring(inline_svg(one, p)).iter() if "id" in e.attrib] for p in ("f1", "f2")]
    assert len({*ids[0], *ids[1]}) == len(ids[0]) + len(ids[1])


def test_the_page_theme_reaches_every_colour() -> None:
    svg = inline_svg(chart(*(line(f"s{i}") for i in range(8))), "p")
    for i, colour in enumerate(SERIES):
        assert f"var(--c{i},{colour})" in svg
    assert "stroke: #" not in svg


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 23.0, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        draw(chart(line()), tmp_path / "c.png")
        assert dict(matplotlib.rcParams) == before


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArgumentError, match=r"out: got .*cannot be written"):
        draw(chart(line()), tmp_path / "file" / "c.png")


def test_power_labels_read_as_numbers() -> None:
    assert [power_label(v) for v in (1e-7, 0.002, 5.0, 5000.0, 1e4, 0.0, math.inf)] == [
        "10⁻⁷", "0.002", "5", "5000", "10⁴", "", "",
    ]  # fmt: skip
