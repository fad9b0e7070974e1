"""All models of the zoo, by name."""

from importlib.util import find_spec

from predict_bench.zoo import attention, first, hub, images, stacks
from predict_bench.zoo.entry import Zoo

_FAMILIES = (first.zoo, stacks.zoo, images.zoo, attention.zoo)


def catalogue() -> Zoo:
    """Return name → entry; those of transformers only where it is installed.

    Raises:
        ValueError: two models go by one name.
    """
    found = {}
    for family in (*_FAMILIES, *([hub.zoo] if find_spec("transformers") else [])):
        for name, entry in family().items():
            if name in found:
                raise ValueError(f"two models are called {name!r}")
            found[name] = entry
    return found
