"""The global generators, borrowed and given back."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept_rng(seed: int | None = None, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Give back the state of torch's, NumPy's and Python's global generators on leaving.

    Args:
        seed: what to seed torch's generators with meanwhile, or None to go on from where they are.
        devices: accelerators whose generators are used inside; the CPU's always is.

    >>> before = torch.initial_seed()
    >>> with kept_rng(7):
    ...     inside = torch.rand(1)
    >>> torch.initial_seed() == before
    True
    """
    accelerators = [device for device in devices if device.type == "cuda"]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in accelerators]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                for device in accelerators:
                    torch.cuda.default_generators[device.index or 0].manual_seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
