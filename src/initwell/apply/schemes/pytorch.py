"""PyTorch's own default start, reproduced: the same distributions, from initwell's seeds."""

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules import conv

from initwell.apply.schemes.base import Choice, Entry, Scheme, conventional, kept
from initwell.apply.sites import Site
from initwell.initializers.distributions import Constant, Normal, Uniform


@dataclass(frozen=True)
class PyTorchDefault(Scheme):
    """What each module's ``reset_parameters`` draws, weights and biases, by the fans as PyTorch computes them.

    Linear, convolutions and Bilinear: U(±1/√fan_in); Embedding: N(0, 1); recurrent: U(±1/√hidden); attention: Xavier
    for its input projections; norms the identity. What has no ``reset_parameters`` of PyTorch's is left alone.

    Source: torch.nn.modules, version 2.13.

    >>> PyTorchDefault().describe()
    'pytorch default'
    """

    @property
    def needs_activation(self) -> bool:
        """Whether it asks what follows a layer: PyTorch does not."""
        return False

    def describe(self) -> str:
        """Return the name."""
        return "pytorch default"

    def weight(self, site: Site) -> Choice:
        """Draw a weight as the module's own ``reset_parameters`` does."""
        return _default(site)

    def rest(self, site: Site) -> Choice:
        """Draw a bias as the module's own ``reset_parameters`` does."""
        return _default(site)


def _default(site: Site) -> Choice:
    module, name = site.module, site.key.rpartition(".")[2] or site.name
    if site.role == "other":
        return kept(site.note)
    if any(isinstance(m, nn.Transformer) for m in site.chain) and len(site.shape) > 1:
        return _xavier(site, "nn.Transformer draws every matrix so")
    if isinstance(module, nn.MultiheadAttention):
        return _attention(site)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _bounded(module.hidden_size, "hidden", "recurrent")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Choice("pytorch N(0, 1)", Normal(0.0, 1.0), "PyTorch's default for an embedding")
    if isinstance(module, nn.Bilinear):
        return _bounded(module.in1_features, "first input", "Bilinear")
    if isinstance(module, nn.PReLU):
        return Choice("constant", Constant(float(module.init)), "the slope that the module was built with")
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and name == "bias":
        return Choice("zeros", Constant(0.0), "PyTorch starts an attention's output bias at 0")
    if isinstance(module, (nn.Linear, conv._ConvNd)):
        return _bounded(_fan_in(module), "fan_in as PyTorch counts it", type(module).__name__)
    if site.role in ("norm_weight", "norm_bias"):
        return conventional(site)
    return kept(f"{site.module_type.rpartition('.')[2]} has no default of PyTorch's")


def _fan_in(module: nn.Linear | conv._ConvNd) -> float:
    # Axis 1 of the weight times the kernel: for a transposed convolution that is the other side's fan.
    if isinstance(module, nn.Linear):
        return module.in_features
    across = module.out_channels if module.transposed else module.in_channels
    return across // module.groups * math.prod(module.kernel_size)


def _bounded(fan: float, what: str, kind: str) -> Choice:
    bound = 1 / math.sqrt(fan) if fan > 0 else 0.0
    reason = f"PyTorch's default for {kind}: uniform within 1/√{fan:g} ({what})"
    return Choice("pytorch uniform", Uniform(-bound, bound), reason, fan=float(fan))


def _attention(site: Site) -> Choice:
    if site.name == "in_proj_bias":
        return Choice("zeros", Constant(0.0), "PyTorch starts an attention's input bias at 0")
    if site.name in ("bias_k", "bias_v"):
        width = site.shape[-1]
        return Choice("pytorch xavier normal", Normal(0.0, 1 / math.sqrt(width)), "PyTorch's default", fan=float(width))
    return _xavier(site, "PyTorch's default for an attention's input projections")


def _xavier(site: Site, why: str) -> Choice:
    # Over the whole packed tensor, as PyTorch does: (3d, d) counts as one matrix with 3d outputs.
    fan = sum(site.shape[:2]) * math.prod(site.shape[2:]) / 2
    bound = math.sqrt(3 / fan)
    return Choice("pytorch xavier uniform", Uniform(-bound, bound), f"{why}: xavier, fan {fan:g}", fan=fan, gain=1.0)


ENTRIES = (Entry("pytorch", PyTorchDefault, "what PyTorch draws by itself, from initwell's seeds"),)
