"""Caffe's debug_info lines: a net worked out by hand, a conv net recomputed with plain PyTorch, and a golden text."""

import math
import os
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initwell.errors import ArgumentError
from initwell.measurement.debug_info import caffe_debug_info, caffe_float

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe_debug_info.txt"


def test_by_hand() -> None:
    # x = (1, −2); ip1 has rows (1, 0) and (0, 1), bias (0.5, 0): y = (1.5, −2); ReLU in place: (1.5, 0);
    # ip2 = (2, 4), bias 1: 4; the loss is its square, 16. Backward: 2·4 = 8; on the blob ip1 8·(2, 4) = (16, 32),
    # after ReLU (16, 0).
    net = nn.Sequential(OrderedDict(ip1=nn.Linear(2, 2), relu1=nn.ReLU(inplace=True), ip2=nn.Linear(2, 1)))
    net.load_state_dict(
        {
            "ip1.weight": torch.eye(2),
            "ip1.bias": torch.tensor([0.5, 0.0]),
            "ip2.weight": torch.tensor([[2.0, 4.0]]),
            "ip2.bias": torch.tensor([1.0]),
        }
    )
    text = caffe_debug_info(net, torch.tensor([[1.0, -2.0]]), loss=lambda y: y.square().sum(), learning_rate=0.1)
    # Net: |data| 2 + 0.5 + 6 + 1 = 9.5, squares 2 + 0.25 + 20 + 1 = 23.25; ip1's gradient is (16, −32; 0, 0) and
    # (16, 0), ip2's (12, 0) and 8: |diff| 48 + 16 + 12 + 8 = 84, squares 1280 + 256 + 144 + 64 = 1744.
    assert text == (
        "    [Forward] Layer data, top blob data data: 1.5\n"
        "    [Forward] Layer ip1, top blob ip1 data: 1.75\n"
        "    [Forward] Layer ip1, param blob 0 data: 0.5\n"
        "    [Forward] Layer ip1, param blob 1 data: 0.25\n"
        "    [Forward] Layer relu1, top blob ip1 data: 0.75\n"
        "    [Forward] Layer ip2, top blob ip2 data: 4\n"
        "    [Forward] Layer ip2, param blob 0 data: 3\n"
        "    [Forward] Layer ip2, param blob 1 data: 1\n"
        "    [Forward] Layer loss, top blob loss data: 16\n"
        "    [Backward] Layer loss, bottom blob ip2 diff: 8\n"
        "    [Backward] Layer ip2, bottom blob ip1 diff: 24\n"
        "    [Backward] Layer ip2, param blob 0 diff: 6\n"
        "    [Backward] Layer ip2, param blob 1 diff: 8\n"
        "    [Backward] Layer relu1, bottom blob ip1 diff: 8\n"
        "    [Backward] Layer ip1, param blob 0 diff: 12\n"
        "    [Backward] Layer ip1, param blob 1 diff: 8\n"
        "    [Backward] All net params (data, diff): L1 norm = (9.5, 84); L2 norm = (4.82183, 41.7612)\n"
        "    [Update] Layer ip1, param 0 data: 0.5; diff: 1.2\n"
        "    [Update] Layer ip1, param 1 data: 0.25; diff: 0.8\n"
        "    [Update] Layer ip2, param 0 data: 3; diff: 0.6\n"
        "    [Update] Layer ip2, param 1 data: 1; diff: 0.8\n"
    )


def conv_net() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A cuda-convnet-like net whose numbers come from sines, so that no generator decides the golden text."""
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 5, padding=2),
            pool1=nn.MaxPool2d(3, 2),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(4, 6, 3),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(2),
            flat=nn.Flatten(),
            ip1=nn.Linear(24, 10),
        )
    )
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_((torch.arange(p.numel(), dtype=torch.float64) * (1.7 + i)).sin().reshape(p.shape) * 0.2)
    x = (torch.arange(4 * 3 * 14 * 14, dtype=torch.float64) * 0.37).sin().float().reshape(4, 3, 14, 14)
    return net, x, torch.tensor([1, 3, 0, 7])


def lines() -> list[str]:
    net, x, y = conv_net()
    return caffe_debug_info(net, x, loss=lambda out: F.cross_entropy(out, y), learning_rate=0.01).splitlines()


def layers_of(net: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """Every blob by its layer's name, computed out of place; in-place layers included."""
    blobs = {"data": x}
    for name, module in net.named_children():
        x = F.relu(x) if isinstance(module, nn.ReLU) else module(x)
        if name != "flat":
            blobs[name] = x
    return blobs


def test_a_conv_net_against_plain_pytorch() -> None:
    net, x, y = conv_net()
    blobs = layers_of(net, x)
    loss = F.cross_entropy(blobs["ip1"], y)
    names = list(blobs)
    gradients = dict(
        zip(names[1:], torch.autograd.grad(loss, [blobs[n] for n in names[1:]], retain_graph=True), strict=True)
    )
    found = {line.rpartition(": ")[0].strip(): line.rpartition(": ")[2] for line in lines()}

    def mean(t: Tensor) -> float:
        return float(t.detach().double().abs().mean())

    top = {name: "pool1" if name == "relu1" else name for name in names}
    for before, name in pairwise(names):
        printed = float(found[f"[Forward] Layer {name}, top blob {top[name]} data"])
        assert printed == pytest.approx(mean(blobs[name]), rel=1e-5)
        key = f"[Backward] Layer {name}, bottom blob {top[before]} diff"
        if before == "data":
            assert key not in found
        else:
            assert float(found[key]) == pytest.approx(mean(gradients[before]), rel=1e-5)
    for name, module in net.named_children():
        for i, p in enumerate(module.parameters()):
            (gradient,) = torch.autograd.grad(loss, p, retain_graph=True)
            assert float(found[f"[Forward] Layer {name}, param blob {i} data"]) == pytest.approx(mean(p), rel=1e-5)
            printed = float(found[f"[Backward] Layer {name}, param blob {i} diff"])
            assert printed == pytest.approx(mean(gradient), rel=1e-5)


def test_order_and_golden_text() -> None:
    text = "\n".join(lines()) + "\n"
    if os.environ.get("INITWELL_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    golden = GOLDEN.read_text(encoding="utf-8")
    shape = [line.rpartition(": ")[0].split("; diff")[0].split(" = ")[0] for line in text.splitlines()]
    assert shape == [line.rpartition(": ")[0].split("; diff")[0].split(" = ")[0] for line in golden.splitlines()]
    # The last of six digits may turn with the order of a sum on another machine; nothing else may.
    for ours, theirs in zip(numbers(text), numbers(golden), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


def numbers(text: str) -> list[float]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").replace(";", " ").split()
    return [float(w) for w in words if w[0].isdigit() and w != "0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1 / 3, "0.333333"),
        (123456.0, "123456"),
        (1234567.0, "1.23457e+06"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1e-50, "0"),
        (1e50, "inf"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (100000.5, "100000"),
    ],
)
def test_floats_as_cpp_prints_them(value: float, text: str) -> None:
    assert caffe_float(value) == text


def test_without_a_loss_there_is_no_loss_layer_and_no_update() -> None:
    net, x, _ = conv_net()
    text = caffe_debug_info(net, x)
    assert "Layer loss" not in text
    assert "[Update]" not in text
    assert "[Backward] Layer ip1, bottom blob pool2 diff" in text


def test_frozen_layers_nested_names_and_reused_modules() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), relu), nn.Sequential(nn.Linear(2, 2), relu), nn.Dropout(0.5))
    net[0].requires_grad_(False)
    text = caffe_debug_info(net.eval(), torch.tensor([[1.0, -2.0]]), loss=lambda y: y.sum(), learning_rate=1.0)
    assert "[Forward] Layer 0.1, top blob 0.1 data" in text
    assert "[Forward] Layer 1.1, top blob 1.1 data" in text
    assert "[Forward] Layer 2, top blob 2 data" in text
    # Nothing before the first layer that learns gets a gradient in Caffe.
    assert "[Backward] Layer 0.0" not in text
    assert "[Backward] Layer 1.0, bottom blob" not in text
    assert "[Backward] Layer 1.0, param blob 0 diff" in text
    assert "[Backward] Layer 1.1, bottom blob 1.0 diff" in text


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (lambda: nn.Linear(2, 2), torch.ones(1, 2), "got a Linear"),
        (lambda: nn.Sequential(nn.TransformerEncoderLayer(2, 1, 2)), torch.ones(1, 2), "with layers inside"),
        (lambda: nn.Sequential(nn.Embedding(2, 2)), torch.zeros(1, dtype=torch.long), "one tensor"),
    ],
)
def test_other_models_are_refused(model: Callable[[], nn.Module], batch: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        caffe_debug_info(model(), batch)
