"""Which rectifiers speak: the share of positive outputs and of silent units, layer by layer, on given images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Activity:
    """What one ReLU layer does on a set of images.

    Attributes:
        path: module path of the layer.
        active: P(y > 0) over images, units and positions.
        silent: one flag a unit, True where it is zero on every image and position.
    """

    path: str
    active: float
    silent: tuple[bool, ...]

    @property
    def dead(self) -> float:
        """Return the share of units that are silent on every image."""
        return sum(self.silent) / len(self.silent)


def relu_activity(model: nn.Module, images: Tensor) -> tuple[Activity, ...]:
    """Run ``images`` through ``model`` once and report on each of its ``nn.ReLU`` layers in order of execution.

    Args:
        model: any network whose rectifiers are modules; its mode and weights stay as they are, no hook is left behind.
        images: shape (samples, …), as the model takes it.

    Returns:
        One ``Activity`` a ReLU, units along axis 1.
    """
    found: list[Activity] = []
    paths: dict[nn.Module, str] = {m: path for path, m in model.named_modules() if isinstance(m, nn.ReLU)}

    def note(module: nn.Module, _inputs: object, output: Tensor) -> None:
        on = (output > 0).flatten(2) if output.dim() > 2 else (output > 0).unsqueeze(-1)
        silent = ~on.any(dim=2).any(dim=0)
        found.append(Activity(paths[module], float(on.float().mean()), tuple(bool(s) for s in silent)))

    handles = [module.register_forward_hook(note) for module in paths]
    training = model.training
    try:
        model.eval()
        with torch.inference_mode():
            model(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return tuple(found)
