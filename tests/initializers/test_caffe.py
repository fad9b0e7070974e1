"""Caffe's fillers against its C++ formulas written out, and the prototxt reader's strictness."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.initializers import caffe
from initwell.initializers.base import Initializer
from initwell.initializers.distributions import Constant, Normal, Uniform
from initwell.initializers.layout import Layout
from initwell.initializers.prototxt import parse_filler
from initwell.initializers.sparse import SparseNormal
from initwell.sampling.fill import fill

CONV = Layout((64, 8, 3, 3), "conv", groups=2, stride=(2, 2))
DECONV = Layout((8, 64, 3, 3), "conv_transpose", 0, 1)


def test_fans_are_of_the_raw_shape() -> None:
    # Caffe sees neither groups nor stride; our true fan-out of this layer is 32·9/4 = 72.
    assert caffe.fans(CONV.shape) == (72.0, 576.0)
    assert CONV.fan_out == 72.0
    # The blob of a deconvolution is (in, out, k, k): what Caffe calls fan_in is there the true fan-out.
    assert caffe.fans(DECONV.shape)[0] == DECONV.fan_out
    assert caffe.fans(DECONV.shape)[1] == DECONV.fan_in
    assert caffe.fans((10,)) == (1.0, 10.0)
    for shape in [(), (0, 3)]:
        with pytest.raises(ShapeError):
            caffe.fans(shape)


@pytest.mark.parametrize(("norm", "n"), [("FAN_IN", 72.0), ("FAN_OUT", 576.0), ("AVERAGE", 324.0)])
def test_xavier_and_msra(norm: str, n: float) -> None:
    bound = math.sqrt(3 / n)
    assert caffe.Xavier(norm).recipe(CONV).distribution == Uniform(-bound, bound)
    assert caffe.MSRA(norm).recipe(CONV).distribution == Normal(0.0, math.sqrt(2 / n))
    assert caffe.Xavier(norm).recipe(CONV).fan == n


def test_defaults_are_caffes() -> None:
    assert caffe.Constant().recipe(CONV).distribution == Constant(0.0)
    assert caffe.Uniform().recipe(CONV).distribution == Uniform(0.0, 1.0)
    assert caffe.Gaussian().recipe(CONV).distribution == Normal(0.0, 1.0)
    assert caffe.Xavier().recipe(CONV).fan == 72.0
    assert caffe.MSRA().recipe(CONV).fan == 72.0


def test_sparse_gaussian_keeps_each_with_probability_sparse_over_outputs() -> None:
    assert caffe.Gaussian(0.0, 0.1, 16).recipe(CONV).distribution == SparseNormal(0.25, 0.1, 0.0)
    none = caffe.Gaussian(sparse=0).recipe(CONV).distribution
    assert not fill(none, CONV.shape, seed=0, name="w").any()
    with pytest.raises(ShapeError, match="at most 64"):
        caffe.Gaussian(sparse=65).recipe(CONV)


@pytest.mark.parametrize("layout", [CONV, DECONV, Layout((6, 4)), Layout.of((5,))], ids=str)
def test_positive_unitball_sums_over_the_first_axis(layout: Layout) -> None:
    weight = fill(caffe.PositiveUnitball().recipe(layout).distribution, layout.shape, seed=0, name="w")
    assert np.allclose(weight.reshape(layout.shape[0], -1).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
def test_bilinear_is_caffes_loop(width: int) -> None:
    shape = (2, 3, width, width)
    expected = np.empty(math.prod(shape))
    f = math.ceil(width / 2.0)
    c = (width - 1) / (2.0 * f)
    for i in range(len(expected)):
        x, y = i % width, (i // width) % width
        expected[i] = (1 - abs(x / f - c)) * (1 - abs(y / f - c))
    for layout in (Layout(shape, "conv"), Layout(shape, "conv_transpose", 0, 1)):
        distribution = caffe.Bilinear().recipe(layout).distribution
        drawn = fill(distribution, shape, seed=0, name="w")
        assert (drawn.reshape(-1) == expected.astype(np.float32)).all()
        assert distribution.mean == pytest.approx(expected.mean())
        assert distribution.std == pytest.approx(expected.std(), abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (2, 3, 4, 4, 4)])
def test_bilinear_wants_a_square_blob_of_four_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="4 axes"):
        caffe.Bilinear().recipe(Layout.of(shape))


@pytest.mark.parametrize(
    ("snippet", "filler"),
    [
        ('weight_filler { type: "xavier" variance_norm: AVERAGE }', caffe.Xavier("AVERAGE")),
        ('type: "xavier" variance_norm: AVERAGE', caffe.Xavier("AVERAGE")),
        ("weight_filler: {\n  type: 'msra'  # as in the paper\n  variance_norm: FAN_OUT\n}", caffe.MSRA("FAN_OUT")),
        ('bias_filler { type: "constant" value: 0.1 }', caffe.Constant(0.1)),
        ("value: .5f", caffe.Constant(0.5)),
        ("weight_filler {}", caffe.Constant(0.0)),
        ('type: "gaussian", std: 1e-2; mean: -1, sparse: 100', caffe.Gaussian(-1.0, 0.01, 100)),
        ('type:"uniform" min:-1 max:+2.', caffe.Uniform(-1.0, 2.0)),
        ('type: "positive_unitball"', caffe.PositiveUnitball()),
        ('type: "bilinear" sparse: -1', None),
        ('type: "bilinear"', caffe.Bilinear()),
    ],
)
def test_prototxt_is_read(snippet: str, filler: Initializer | None) -> None:
    if filler is None:
        # Caffe's own default, written out: accepted, and named as without effect.
        assert "ignores sparse: -1" in parse_filler(snippet).describe()
    else:
        assert parse_filler(snippet) == filler


def test_fields_that_caffe_ignores_are_named() -> None:
    # BVLC's GoogLeNet gives its xavier fillers a std, which Caffe accepts and never reads.
    filler = parse_filler('weight_filler { type: "xavier" std: 0.1 }')
    recipe = filler.recipe(CONV)
    assert recipe.distribution == caffe.Xavier().recipe(CONV).distribution
    assert "ignores std: 0.1" in recipe.note
    assert filler.name == "caffe.xavier"
    assert "glorot2010" in filler.citation


@pytest.mark.parametrize(
    ("snippet", "error", "message"),
    [
        ('type: "xaver"', UnknownNameError, "'xavier'"),
        ('tpye: "xavier"', UnknownNameError, "'type'"),
        ('weight_fller { type: "xavier" }', UnknownNameError, "'weight_filler'"),
        ('type: "xavier" variance_norm: MEAN', UnknownNameError, "FAN_OUT"),
        ('type: "xavier" variance_norm: average', UnknownNameError, "Did you mean 'AVERAGE'"),
        ('type: "gaussian" variance_norm: MEAN', UnknownNameError, "FAN_OUT"),
        ('type: "xavier" sparse: 3', ArgumentError, "Only the gaussian"),
        ('type: "gaussian" sparse: 1.5', ArgumentError, "whole number"),
        ('type: "gaussian" sparse: -2', ArgumentError, "-1 for a dense"),
        ('type: "gaussian" std: 0', ArgumentError, "above 0"),
        ('type: "gaussian" std: "0.1"', ArgumentError, "a number"),
        ('type: "uniform" min: 2 max: 1', ArgumentError, "min <= max"),
        ("type: xavier", ArgumentError, "in quotes"),
        ('type: "xavier" type: "msra"', ArgumentError, "twice"),
        ('type "xavier"', ArgumentError, "colon"),
        ("type:", ArgumentError, "colon and a value"),
        ('weight_filler { type: "xavier"', ArgumentError, "not closed"),
        ('weight_filler { type: "xavier" } }', ArgumentError, "name is wanted"),
        ("", ArgumentError, "empty"),
        ("value: 1e", ArgumentError, "nothing of prototxt"),
        ("value: 1.2.3", ArgumentError, "nothing of prototxt"),
    ],
)
def test_what_is_no_filler_is_refused(snippet: str, error: type[ArgumentError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_filler(snippet).recipe(CONV)


@pytest.mark.parametrize(
    "build",
    [
        lambda: caffe.Xavier("MEAN"),
        lambda: caffe.MSRA("fan_in"),
        lambda: caffe.Gaussian(std=-1.0),
        lambda: caffe.Gaussian(sparse=-2),
        lambda: caffe.Gaussian(mean=math.nan),
        lambda: caffe.Uniform(1.0, -1.0),
        lambda: caffe.Uniform(max=math.inf),
        lambda: caffe.Constant(math.nan),
        lambda: caffe.Constant("0.1"),  # type: ignore[arg-type]
        lambda: caffe.Xavier(2),  # type: ignore[arg-type]
        lambda: parse_filler(None),  # type: ignore[arg-type]
    ],
)
def test_bad_options_are_refused(build: Callable[[], Initializer]) -> None:
    with pytest.raises(ArgumentError):
        build()
