"""The input that a model of a library is made for, where none was given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from initwell.cli.batches import SHAPE, Example, drawn
from initwell.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

SAMPLES = 8
# Tokens of a text, samples of a sound wave.
LENGTH, WAVE = 32, 16_000

# Name of an input → shape of one sample, and what its whole numbers are below (0 for normal numbers).
Shapes = Mapping[str, tuple[tuple[int, ...], int]]


def natural(name: str, model: "nn.Module", seed: int) -> Example:
    """Make a random batch of what a library's model says that it takes.

    Args:
        name: of the model, as it was named: ``timm:resnet50``.
        model: that was built.
        seed: of the numbers.

    Returns:
        A batch of 8 samples.

    Raises:
        ArgumentError: the model does not say; give --input.
    """
    import torch

    library, _, own = name.partition(":")
    shapes = {"timm": _timm, "torchvision": _torchvision, "hf": _hf}.get(library, _unsaid)(own, model)
    if not shapes:
        raise ArgumentError("input", "nothing", f"{name} does not say what it takes: give --input, {SHAPE}.")
    generator = torch.Generator().manual_seed(seed)
    batch = {key: drawn((SAMPLES, *shape), below, generator) for key, (shape, below) in shapes.items()}
    written = ", ".join(key + " " * bool(key) + "x".join(map(str, t.shape)) for key, t in batch.items())
    words = f"random input {written}, as {name} takes it, seed {seed}"
    return Example(batch.get("", batch), None, next(iter(shapes.values()))[0], 0, words)


def _unsaid(own: str, model: "nn.Module") -> Shapes:
    return {}


def _timm(own: str, model: Any) -> Shapes:
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return {"": (tuple(size), 0)} if size else {}


def _torchvision(own: str, model: Any) -> Shapes:
    kind = type(model).__module__
    if ".detection" in kind or ".optical_flow" in kind:
        return {}
    if ".video" in kind:
        return {"": ((3, 16, 112, 112) if "mvit" not in own and "swin" not in own else (3, 16, 224, 224), 0)}
    side = 299 if own == "inception_v3" else 224
    return {"": ((3, side, side), 0)}


def _hf(own: str, model: Any) -> Shapes:
    config, main = model.config, model.main_input_name
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    # A model of pictures and texts names only one of the two.
    pair = hasattr(config, "vision_config") and hasattr(config, "text_config")
    if main == "pixel_values" or pair:
        found["pixel_values"] = _picture(getattr(config, "vision_config", config))
    if main == "input_ids" or pair:
        found["input_ids"] = _tokens(config)
    if main == "input_values":
        found["input_values"] = ((WAVE,), 0)
    if main == "input_features" and hasattr(config, "max_source_positions"):
        found["input_features"] = ((config.num_mel_bins, 2 * config.max_source_positions), 0)
    if main in found and getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = _tokens(config)
    return found if main in found and all(shape for shape, _ in found.values()) else {}


def _tokens(config: Any) -> tuple[tuple[int, ...], int]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", 0)
    # A few positions are lost to padding in some models.
    length = min(LENGTH, (getattr(text, "max_position_embeddings", 0) or LENGTH + 4) - 4)
    return ((length,), vocabulary) if vocabulary else ((), 0)


def _picture(config: Any) -> tuple[tuple[int, ...], int]:
    side = getattr(config, "image_size", None) or 224
    sides = tuple(side) if isinstance(side, (tuple, list)) else (side, side)
    return ((getattr(config, "num_channels", 3), *sides), 0)
