"""What every scheme promises, run over all of them; a new scheme is tested by being there."""

import numpy as np
import pytest
import torch
from torch import nn

from initwell.apply.plan import Plan, plan
from initwell.apply.schemes.base import Choice, Entry, Scheme
from initwell.apply.schemes.everywhere import Everywhere
from initwell.apply.schemes.kaiming import Kaiming
from initwell.apply.schemes.registry import collect, entries, scheme, scheme_names
from initwell.apply.schemes.xavier import Xavier
from initwell.apply.write import init_
from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.initializers.scaling import lecun

# The names that users are promised; more may come, none may go.
CAFFE = ("constant", "uniform", "gaussian", "positive_unitball", "xavier", "msra", "bilinear")
PROMISED = (
    *("zeros", "ones", "constant", "uniform", "normal", "truncated_normal", "small_random", "sparse", "pytorch"),
    *("lecun", "inverse_sqrt", "xavier", "kaiming", "orthogonal", "delta_orthogonal", "scaled_uniform_orthogonal"),
    *("identity", "dirac", "bilinear", "positive_unitball"),
    *(f"caffe.{name}" for name in CAFFE),
)
ONLY_KERNELS = {"dirac", "bilinear", "caffe.bilinear"}


def kernels() -> nn.Module:
    """Convolutions alone, which every scheme can fill."""
    return nn.Sequential(nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3))


def mixed() -> nn.Module:
    """One of each kind of weight."""
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(8, 16, 3, groups=2, stride=2),
            "up": nn.ConvTranspose2d(16, 16, 4, stride=2),
            "linear": nn.Linear(40, 30),
            "embedding": nn.Embedding(25, 30),
            "attention": nn.MultiheadAttention(24, 3),
            "recurrent": nn.LSTM(20, 16),
            "norm": nn.LayerNorm(30),
        }
    )


def model_for(name: str) -> nn.Module:
    return kernels() if name in ONLY_KERNELS else mixed()


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_are_there(name: str) -> None:
    assert isinstance(scheme(name), Scheme)


@pytest.mark.parametrize("name", scheme_names())
class TestEveryScheme:
    def test_describes_itself(self, name: str) -> None:
        entry = entries()[name]
        assert entry.name == name and entry.summary and scheme(name).describe()
        assert scheme(name) == scheme(name), "a scheme is a value"

    def test_plans_every_parameter_with_a_reason_and_leaves_the_model_alone(self, name: str) -> None:
        model = model_for(name)
        before = [p.detach().clone() for p in model.parameters()]
        made = plan(model, name)
        assert [row.parameter for row in made.rows] == [n for n, _ in model.named_parameters()]
        assert all(row.reason for row in made.rows)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    def test_writes_what_it_planned_with_the_spread_it_promised(self, name: str) -> None:
        model = model_for(name)
        receipt = init_(model, name, seed=11)
        for row in receipt.plan.rows:
            assert row.distribution is not None, row.parameter
            drawn = model.get_parameter(row.parameter).detach().double().numpy()
            assert row.std is not None
            # Five standard errors of a normal's std and mean; entries that depend on one another scatter no more, but
            # of sparse weights only those that are not 0 count.
            n = np.count_nonzero(drawn) if name == "sparse" else drawn.size
            assert drawn.std() == pytest.approx(row.std, rel=5 / np.sqrt(2 * max(n, 1)) + 1e-5, abs=1e-12), (
                row.parameter
            )
            assert drawn.mean() == pytest.approx(row.distribution.mean, abs=5 * row.std / np.sqrt(drawn.size) + 1e-6)
            assert np.isfinite(drawn).all()

    def test_the_same_seed_gives_the_same_bits_another_model_object_or_not(self, name: str) -> None:
        a, b = model_for(name), model_for(name)
        assert init_(a, name, seed=3) == init_(b, name, seed=3)
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    def test_a_saved_plan_replays_to_the_same_bits(self, name: str, tmp_path: object) -> None:
        a, b = model_for(name), model_for(name)
        receipt = init_(a, name, seed=3)
        receipt.plan.save(f"{tmp_path}/plan.json")
        assert init_(b, Plan.load(f"{tmp_path}/plan.json")) == receipt

    def test_a_citation_is_bibtex_or_nothing(self, name: str) -> None:
        text = plan(model_for(name), name).citation()
        assert text == "" or (text.startswith("@") and text.count("{") == text.count("}"))


@pytest.mark.parametrize("name", sorted(ONLY_KERNELS))
def test_schemes_for_kernels_refuse_a_matrix_and_say_how_to_go_on(name: str) -> None:
    with pytest.raises(ShapeError, match=r"'0\.weight'.*rules="):
        plan(nn.Sequential(nn.Linear(4, 4)), name)


def test_delta_orthogonal_refuses_fewer_outputs_than_inputs() -> None:
    with pytest.raises(ShapeError, match="scaled_uniform_orthogonal"):
        plan(nn.Sequential(nn.Conv2d(8, 4, 3)), "delta_orthogonal")


def test_the_registry_refuses_duplicates_and_other_things() -> None:
    entry = Entry("lecun", lambda: Everywhere(lecun()), "twice")
    with pytest.raises(ValueError, match="two schemes are called 'lecun'"):
        collect([entry, entry])
    with pytest.raises(TypeError, match="Entry records, not 'lecun'"):
        collect(["lecun"])  # type: ignore[list-item]


def test_unknown_names_and_things_that_are_no_scheme() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'orthogonal'"):
        scheme("ortogonal")
    with pytest.raises(ArgumentError, match="or an initializer"):
        scheme(torch.nn.init.kaiming_normal_)


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    [
        ("he", "kaiming"),
        ("glorot", "xavier"),
        ("xavier_uniform", "xavier"),
        ("xavier_uniform_", "xavier"),
        ("kaiming_normal", "kaiming"),
        ("he_normal", "kaiming"),
        ("glorot_uniform", "xavier"),
        ("trunc_normal", "truncated_normal"),
        ("lecun_normal", "lecun"),
        ("random_normal", "normal"),
        ("XAVIER", "xavier"),
    ],
)
def test_the_names_of_other_libraries_lead_to_the_name_here(elsewhere: str, here: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean {here!r}\\?$"):
        scheme(elsewhere)
    scheme(here)


@pytest.mark.parametrize(
    ("elsewhere", "here", "written", "asked"),
    [
        ("kaiming_uniform_", "kaiming", "Kaiming(distribution='uniform')", Kaiming(distribution="uniform")),
        ("glorot_normal", "xavier", "Xavier(distribution='normal')", Xavier(distribution="normal")),
        ("lecun_uniform", "lecun", "lecun(distribution='uniform')", lecun(distribution="uniform")),
        ("he_trunc_normal", "kaiming", "Kaiming(distribution='trunc", Kaiming(distribution="truncated_normal")),
    ],
)
def test_a_distribution_that_is_not_the_schemes_own_is_told_apart(
    elsewhere: str, here: str, written: str, asked: object
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        scheme(elsewhere)
    assert f"Did you mean {here!r}?" in str(caught.value) and written in str(caught.value)
    assert written.split("'")[1] in scheme(asked).describe().replace(" ", "_")


def test_a_choice_that_leaves_alone_says_why() -> None:
    rows = plan(nn.Sequential(nn.Linear(3, 3), nn.PReLU()), "xavier").rows
    assert [row.initializer for row in rows][-1] == "left alone" and "slopes keep" in rows[-1].reason
    assert Choice("left alone", None, "why").distribution is None
