"""The network of a comparison: one of the zoo, or the caller's own function."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from initwell.errors import ArgumentError, InitwellError, ModelError, UnknownNameError
from initwell.experiments import zoo
from initwell.experiments.behaviour import behaviour, model_behaviour
from initwell.trace.keep import random_kept

# What a function may ask for by keyword.
OFFERED = ("shape", "classes", "activation", "depth", "width", "norm")


def called(function: Callable[..., Any]) -> str:
    """Return what to call a function; a partial one with its arguments.

    >>> called(functools.partial(nn.LeakyReLU, negative_slope=0.2))
    'LeakyReLU(negative_slope=0.2)'
    """
    if isinstance(function, functools.partial):
        given = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return f"{called(function.func)}({', '.join(given)})"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


@dataclass(frozen=True)
class Network:
    """Builds the same network again and again.

    Attributes:
        name: what to call it.
        builder: a function that returns a new model.
        takes: the keyword arguments that it takes, or None if it takes any.
    """

    name: str
    builder: Callable[..., nn.Module]
    takes: tuple[str, ...] | None

    @classmethod
    def of(cls, build: str | Callable[..., nn.Module]) -> "Network":
        """Understand what the caller gave.

        Args:
            build: a name of the zoo, or a function. Of ``shape`` (of one sample), ``classes``, ``activation``,
                ``depth``, ``width`` and ``norm``, the function is given by keyword those that it takes.

        Raises:
            UnknownNameError: no such network.
            ArgumentError: not callable, a model instead of a function that builds one, or arguments that it insists on
                and nobody gives.
        """
        if isinstance(build, str):
            if build not in zoo.NETWORKS:
                raise UnknownNameError.among("build", build, zoo.NETWORKS)
            return cls(build, zoo.NETWORKS[build], ("shape", "classes", *zoo.network_options(build)))
        if isinstance(build, nn.Module) or not callable(build):
            cure = "Give a name of the zoo, or a function that returns a new model whenever it is called."
            raise ArgumentError("build", type(build).__name__, cure)
        name = called(build)
        try:
            parameters = inspect.signature(build).parameters.values()
        except ValueError:  # a built-in that tells nothing of its arguments
            return cls(name, build, None)
        wide = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        insists = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        missed = [p.name for p in insists if p.kind is p.POSITIONAL_ONLY or p.name not in OFFERED]
        if missed:
            cure = f"Of {', '.join(OFFERED)}, take by keyword what is needed; give the rest defaults."
            raise ArgumentError("build", f"a function that insists on {', '.join(missed)}", cure)
        return cls(name, build, None if wide else tuple(p.name for p in parameters))

    def check_options(self, options: Sequence[str]) -> None:
        """Refuse a grid over what the network cannot be told."""
        for option in options:
            if self.takes is not None and option not in self.takes:
                cure = f"{self.name} takes {', '.join(self.takes) or 'nothing'}; leave {option}s out or let it take it."
                raise ArgumentError(f"{option}s", "a grid over it", cure)

    def build(self, shape: Sequence[int], classes: int, options: Mapping[str, Any], seed: int) -> nn.Module:
        """Build the model; what it draws from the global generators is drawn from copies, seeded."""
        offered = {"shape": tuple(shape), "classes": classes}
        given = {name: value for name, value in offered.items() if self.takes is None or name in self.takes}
        with random_kept(seed):
            try:
                model = self.builder(**given, **options)
            except InitwellError:
                raise
            except Exception as error:
                raise ModelError(f"build: {self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ArgumentError("build", f"a {type(model).__name__} from it", "Let it return an nn.Module.")
        if not any(p.requires_grad for p in model.parameters()):
            raise ModelError(f"{self.name}: the model has no parameters to train.")
        return model

    def identity(self, shape: Sequence[int], classes: int, options: Mapping[str, Any]) -> dict[str, str]:
        """Return what tells this network from another: its name, and hashes of its code, structure and shapes.

        Raises:
            ArgumentError: the function returned the same model twice: training would go on where the last run ended.
        """
        model = self.build(shape, classes, options, seed=0)
        if self.build(shape, classes, options, seed=0) is model:
            raise ArgumentError("build", "the same model twice", "Let it return a new model whenever it is called.")
        tensors = [(name, tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
        code = f"{behaviour(self.builder)} {behaviour(dict(options))} {model_behaviour(model)}"
        return {"name": self.name, "code": _hash(code), "structure": _hash(f"{model}\n{tensors}")}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
