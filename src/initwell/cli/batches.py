"""The batch that a model is looked at with: random of a given shape, or real images."""

import argparse
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from initwell.cli.naming import count
from initwell.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Generator, Tensor

SHAPE = (
    "a shape such as 8x3x32x32 (normal numbers) or 2x16:int100 (whole numbers below 100); commas between several, "
    "NAME=SHAPE for keyword arguments"
)


@dataclass(frozen=True)
class Example:
    """What goes into the model.

    Attributes:
        batch: a tensor, a tuple of them for several inputs, or a dict of them for keyword arguments.
        targets: class numbers, (N,), where the data has them.
        shape: of one sample, (C, H, W); what a zoo net is built for.
        classes: how many the data has; 0 when unknown.
        words: where it came from.
    """

    batch: Any
    targets: "Tensor | None"
    shape: tuple[int, ...]
    classes: int
    words: str


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a batch."""
    parser.add_argument("--input", metavar="SHAPE", help=SHAPE)
    parser.add_argument(
        "--data", metavar="NAME_OR_DIR", help="real images instead: mnist-5k, or a folder of idx or CIFAR-10 files"
    )
    parser.add_argument(
        "--batch-size", type=count, default=64, metavar="N", help="images taken from --data (default 64)"
    )


def example(options: argparse.Namespace, *, required: bool) -> Example | None:
    """Make the batch that was asked for; None when none was and none is ``required``.

    Raises:
        ArgumentError: for both or neither of --input and --data, or a shape that cannot be read.
    """
    if options.input and options.data:
        raise ArgumentError("input", options.input, "--data gives the input already; leave one of the two out.")
    if options.data:
        return _images(options.data, options.batch_size)
    if options.input:
        return _random(options.input, options.seed)
    if required:
        raise ArgumentError("input", "nothing", f"Give --input, {SHAPE}; or --data mnist-5k for real images.")
    return None


def _images(place: str, size: int) -> Example:
    from initwell.experiments.data import load
    from initwell.experiments.preparation import prepared

    ready = prepared(load(place), "standardize")
    words = f"{min(size, len(ready.train_x))} images of {ready.name}, standardized"
    return Example(ready.train_x[:size], ready.train_y[:size], ready.shape, ready.classes, words)


def _random(text: str, seed: int) -> Example:
    import torch

    generator = torch.Generator().manual_seed(seed)
    named: list[tuple[str, Tensor]] = []
    for part in text.split(","):
        name, _, written = part.strip().rpartition("=")
        found = re.fullmatch(r"(\d+(?:x\d+)*)(?::int(\d+))?", written)
        shape = tuple(int(n) for n in found[1].split("x")) if found else ()
        if found is None or 0 in shape or found[2] == "0" or ("=" in part and not name.isidentifier()):
            raise ArgumentError("input", repr(text), f"Write {SHAPE}.")
        try:
            named.append((name, drawn(shape, int(found[2] or 0), generator)))
        except (RuntimeError, MemoryError, TypeError, ValueError) as error:
            cure = "That is more than fits in memory: give a smaller shape."
            raise ArgumentError("input", repr(text), cure) from error
    names = [name for name, _ in named]
    if any(names) and (not all(names) or len(set(names)) < len(names)):
        raise ArgumentError("input", repr(text), "Name every tensor, each by its own name, or none.")
    tensors = tuple(tensor for _, tensor in named)
    batch = dict(named) if any(names) else tensors[0] if len(tensors) == 1 else tensors
    return Example(batch, None, tuple(tensors[0].shape[1:]), 0, f"random input {text}, seed {seed}")


def read_as(text: str) -> str:
    """Say how an --input of bare numbers was read, as of a model that does not take it; nothing of any other.

    Args:
        text: what was given.

    >>> read_as("8,16")
    '--input 8,16 was read as 2 inputs, of shapes (8,) and (16,): for one of shape (8, 16) write 8x16.'
    >>> read_as("8x16"), read_as("8,3x4")
    ('', '')
    """
    found = [part.strip() for part in text.split(",")]
    if len(found) < 2 or not all(part.isdecimal() for part in found):
        return ""
    shapes = [f"({part},)" for part in found]
    listed = f"{', '.join(shapes[:-1])} and {shapes[-1]}"
    one = f"for one of shape ({', '.join(found)}) write {'x'.join(found)}"
    return f"--input {text} was read as {len(found)} inputs, of shapes {listed}: {one}."


def drawn(shape: tuple[int, ...], below: int, generator: "Generator") -> "Tensor":
    """Draw a random tensor.

    Args:
        shape: of it.
        below: whole numbers from 0 to below this; 0 for normal numbers.
        generator: to draw from.
    """
    import torch

    if below:
        return torch.randint(below, shape, generator=generator)
    return torch.randn(shape, generator=generator)
