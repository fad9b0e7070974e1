import pytest
import torch
from torch import nn

from initwell.apply.layouts import layout_of, slot_of
from initwell.errors import ArgumentError, ShapeError


@pytest.mark.parametrize(
    ("module", "name", "fan_in", "fan_out"),
    [
        (nn.Linear(5, 7), "weight", 5, 7),
        (nn.Conv2d(8, 16, 3, groups=4, stride=2), "weight", 18, 9),
        (nn.Conv1d(8, 16, 5, stride=3), "weight", 40, 80 / 3),
        (nn.ConvTranspose2d(8, 16, 4, stride=2), "weight", 32, 256),
        (nn.ConvTranspose2d(8, 16, 4, stride=2, groups=2), "weight", 16, 128),
        (nn.Bilinear(3, 4, 5), "weight", 12, 20),
        (nn.Embedding(11, 6), "weight", 1, 6),
        (nn.EmbeddingBag(11, 6), "weight", 1, 6),
        (nn.MultiheadAttention(12, 3), "in_proj_weight", 12, 12),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "q_proj_weight", 12, 12),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "k_proj_weight", 5, 12),
        (nn.MultiheadAttention(12, 3, kdim=5, vdim=7), "v_proj_weight", 7, 12),
        (nn.LSTM(5, 6), "weight_ih_l0", 5, 6),
        (nn.LSTM(5, 6, bidirectional=True, num_layers=2), "weight_ih_l1_reverse", 12, 6),
        (nn.LSTM(5, 6, proj_size=3), "weight_hr_l0", 6, 3),
        (nn.LSTM(5, 6, proj_size=3), "weight_hh_l0", 3, 6),
        (nn.GRU(5, 6), "weight_hh_l0", 6, 6),
        (nn.RNN(5, 6), "weight_ih_l0", 5, 6),
        (nn.LSTMCell(5, 6), "weight_ih", 5, 6),
        (nn.GRUCell(5, 6), "weight_hh", 6, 6),
        (nn.RNNCell(5, 6), "weight_ih", 5, 6),
    ],
    ids=lambda v: str(v).partition("(")[0],
)
def test_true_fans(module: nn.Module, name: str, fan_in: float, fan_out: float) -> None:
    layout = layout_of(module, name)
    assert (layout.fan_in, layout.fan_out) == pytest.approx((fan_in, fan_out))


@pytest.mark.parametrize(
    ("module", "name", "role"),
    [
        (nn.Linear(2, 3), "bias", "bias"),
        (nn.BatchNorm2d(4), "weight", "norm_weight"),
        (nn.InstanceNorm2d(4, affine=True), "bias", "norm_bias"),
        (nn.LayerNorm((2, 3)), "weight", "norm_weight"),
        (nn.RMSNorm(4), "weight", "norm_weight"),
        (nn.GroupNorm(2, 4), "bias", "norm_bias"),
        (nn.PReLU(3), "weight", "slope"),
        (nn.LSTM(2, 3), "bias_hh_l0", "bias"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k", "bias"),
    ],
    ids=lambda v: str(v).partition("(")[0],
)
def test_what_is_no_weight_is_a_vector_without_fan(module: nn.Module, name: str, role: str) -> None:
    assert slot_of(module, name).role == role
    assert layout_of(module, name).kind == "vector"
    with pytest.raises(ShapeError, match="no fan"):
        _ = layout_of(module, name).fan_in


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, 4))
        self.kernel = nn.Parameter(torch.zeros(6, 4, 3))
        self.scale = nn.Parameter(torch.ones(6))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.gain = nn.Parameter(torch.ones(6, 1, 1))


def test_an_unknown_matrix_is_taken_by_its_shape_and_says_so() -> None:
    slot = slot_of(Strange(), "table")
    assert slot.role == "weight"
    assert slot.layout is not None and slot.layout.fan_in == 4
    assert "Strange.table" in slot.note and "from its shape" in slot.note
    assert layout_of(Strange(), "kernel").fan_in == 12


@pytest.mark.parametrize("name", ["scale", "token", "gain"])
def test_an_unknown_vector_or_token_has_no_layout(name: str) -> None:
    assert slot_of(Strange(), name).role == "other"
    with pytest.raises(ShapeError, match=f"Strange.{name}"):
        layout_of(Strange(), name)


def test_a_subclass_is_what_it_derives_from() -> None:
    class Mine(nn.Linear):
        pass

    assert layout_of(Mine(3, 5), "weight").fan_in == 3


def test_a_weight_under_weight_norm_is_still_found() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, stride=2))
    assert layout_of(module, "weight").fan_out == pytest.approx(9)


def test_a_lazy_parameter_asks_for_a_batch_first() -> None:
    with pytest.raises(ArgumentError, match=r"LazyLinear.*no shape yet.*model\(batch\)"):
        layout_of(nn.LazyLinear(4), "weight")


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ArgumentError, match="weight, bias"):
        layout_of(nn.Linear(2, 3), "kernel")
