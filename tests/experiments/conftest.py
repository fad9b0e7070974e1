"""One pool of worker processes for all tests: each takes seconds to import torch."""

import math
from collections.abc import Iterator

import pytest

from initwell.experiments.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with Pool(2) as running:
        with pytest.MonkeyPatch.context() as patch:
            # What the caller's environment says does not count in a worker.
            patch.setenv("OMP_NUM_THREADS", "2")
            list(running.run(math.sqrt, [1.0, 1.0]))
        yield running
