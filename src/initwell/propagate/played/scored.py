"""What attention reads that is played: outputs of layers, drawn as images of the rows that these layers read.

Queries, keys and values are W x of the same rows x, each with a W of its own. Products of two rows go together in all
of them, and in the gradients of scores, as the rows do (``gram``): so rows x are drawn once for all of them, and a W
for each. What comes of scores goes back through W: dS·q is dS·W x, and Wᵀ W x is larger than of an independent W
(``twice``), by as much as the W that was drawn says. Rows have segments, as a class token and patches, where what goes
in has some.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from initwell.propagate.given.measured import in_parts, measured
from initwell.propagate.moments.signal import Signal
from initwell.propagate.played.drawn import Layers, drawn, undone
from initwell.propagate.played.sizes import LAYERS
from initwell.propagate.shared.twins import Twins
from initwell.trace.trace import Trace


class Scored:
    """Draws what attention reads, and says how its gradients go back through the layers that made that."""

    def __init__(self, trace: Trace, generator: Generator, draws: int) -> None:
        """Begin with none.

        Args:
            trace: that is walked.
            generator: of the numbers.
            draws: how many there are of each value.
        """
        self._trace, self._generator = trace, generator
        # Rows that layers read, by draw; what these layers are, by value and draw.
        self._read: list[dict[tuple[int, ...], Tensor]] = [{} for _ in range(draws)]
        self._layers: dict[int, list[Layers]] = {}
        self._parts: dict[int, tuple[int, ...]] = {}
        self._twins = Twins(trace)

    def drawn(self, value: int, signal: Signal) -> list[Tensor]:
        """Draw a value, with the rows of those before it that are images of the same ones."""
        for atom in signal.atoms:
            if len(atom.parts) > len(self._parts.get(atom.size, ())):
                self._parts[atom.size] = atom.parts
        layers = self._layers[value] = [Layers(read, {}) for read in self._read]
        return [drawn(signal, self._generator, torch.float32, as_images=True, layers=each) for each in layers]

    def alike(self, value: int, others: Iterable[int]) -> list[int]:
        """Return those of other values that a drawn one is, too, as one layer has read the same rows again."""
        found = [i for i in others if i != value and self._twins.first(i) == self._twins.first(value)]
        self._layers.update(dict.fromkeys(found, self._layers[value]))
        return found

    def undone(self, value: int, gradients: Sequence[Tensor]) -> float:
        """Return by how much more of a gradient goes back through the layer that made what it is the gradient of.

        Args:
            value: the gradient.
            gradients: its numbers, of each draw.
        """
        made = next((i for i in self._layers if self._trace.gradients.get(i) == value), None)
        op = None if made is None else self._trace.producer(made)
        if made is None or op is None or op.functional not in LAYERS:
            return 1.0
        read = self._trace.values[op.arguments[LAYERS[op.functional][0]].id]
        return undone(gradients, self._layers[made], read.shape[-1])

    def measured(self, tensor: Tensor, sample: int | None) -> Signal:
        """Measure a tensor, by segments where dimensions count rows that have some."""
        parts = [(n,) if i == sample else self._parts.get(n, (n,)) for i, n in enumerate(tensor.shape)]
        if all(len(p) == 1 for p in parts):
            return measured(tensor, sample=sample)
        return in_parts(tensor.double().numpy(), parts, sample=sample)
