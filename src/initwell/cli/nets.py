"""Building the model that a name on the command line means."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from initwell.cli.naming import HOW, is_callable_name, load_callable, options
from initwell.errors import ArgumentError, InitwellError, ModelError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Builder:
    """Builds the named model anew each time it is called; picklable, so that a worker process can build it too.

    Attributes:
        name: the model as it was named.
        extra: options added to those in the name (a zoo net's depth, width, …).
    """

    name: str
    extra: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Go by the name of the model wherever a function would go by its own."""
        options = ",".join(f"{key}={value}" for key, value in self.extra)
        object.__setattr__(self, "__qualname__", f"{self.name}:{options}" if options else self.name)

    def __call__(self, shape: tuple[int, ...] = (), classes: int = 0) -> "nn.Module":
        """Build the model for inputs of ``shape`` (C, H, W) and ``classes`` classes, where it asks for them.

        Raises:
            ArgumentError: when the name means nothing.
            ModelError: when the model's own code fails.
        """
        model = self._build(shape, classes)
        if not _is_module(model):
            kind = type(model).__name__
            raise ArgumentError("model", repr(self.name), f"It gave an object of type {kind}, not a torch.nn.Module.")
        built: nn.Module = model
        return built

    def _build(self, shape: tuple[int, ...], classes: int) -> Any:
        library, _, rest = self.name.partition(":")
        if library == "zoo":
            return _zoo(rest, shape, classes, dict(self.extra))
        if library in LIBRARIES and rest:
            return _guarded(self.name, lambda: LIBRARIES[library](rest, **dict(self.extra)))
        if not is_callable_name(self.name):
            raise ArgumentError("model", repr(self.name), HOW)
        made = load_callable(self.name, "model")
        if _is_module(made):
            raise ArgumentError("model", repr(self.name), "It is a model already; name a function that returns one.")
        given = {"shape": shape, "classes": classes, **dict(self.extra)}
        return _guarded(self.name, lambda: made(**_wanted(made, given)))


def _is_module(made: Any) -> bool:
    from torch import nn

    return isinstance(made, nn.Module)


def _wanted(made: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):
        return {}
    return {k: v for k, v in given.items() if k in parameters and v not in ((), 0)}


def _guarded(name: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except InitwellError:
        raise
    except Exception as error:
        raise ModelError(f"model {name!r} failed while it was built: {type(error).__name__}: {error}") from error


def _zoo(text: str, shape: tuple[int, ...], classes: int, extra: dict[str, Any]) -> Any:
    from initwell.experiments import zoo

    name, _, rest = text.partition(":")
    given = {**options(rest, "model"), **extra}
    if not shape:
        raise ArgumentError(
            "input", "nothing", "A zoo net is built for its input: give --input 8x1x28x28 or --data mnist-5k."
        )
    try:
        return zoo.build(name, shape, classes or 10, **given)
    except TypeError as error:
        raise ArgumentError("model", repr(f"zoo:{text}"), f"It does not take these options: {error}.") from error


def _library(name: str) -> Any:
    package = name.partition(".")[0]
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ArgumentError("model", package, f"{package} is not installed: pip install {package}") from error
    return import_module(name)


def _timm(name: str, **extra: Any) -> Any:
    timm = _library("timm")
    if name not in timm.list_models():
        raise UnknownNameError.among("model", name, timm.list_models())
    return timm.create_model(name, pretrained=False, **extra)


def _torchvision(name: str, **extra: Any) -> Any:
    models = _library("torchvision.models")
    if name not in models.list_models():
        raise UnknownNameError.among("model", name, models.list_models())
    # A detector or a segmentation net would fetch a trained backbone.
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    backbone = {"weights_backbone": None} if "weights_backbone" in parameters else {}
    return models.get_model(name, weights=None, **{**backbone, **extra})


def _hf(name: str, **extra: Any) -> Any:
    # Built from a configuration: a model type such as gpt2, or a folder with a config.json. Nothing is downloaded.
    from pathlib import Path

    transformers = _library("transformers")
    if Path(name).is_dir():
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, **extra)
    elif name in transformers.CONFIG_MAPPING:
        config = transformers.AutoConfig.for_model(name, **extra)
    else:
        raise UnknownNameError.among("model", name, list(transformers.CONFIG_MAPPING))
    return transformers.AutoModel.from_config(config)


LIBRARIES: dict[str, Callable[..., Any]] = {"timm": _timm, "torchvision": _torchvision, "hf": _hf}
