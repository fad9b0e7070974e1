"""Which activation follows a layer, as far as the modules themselves tell; nothing is run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules import batchnorm, conv, dropout, padding, pooling

from initwell.apply.sites import Site
from initwell.errors import InitwellError
from initwell.records import Record
from initwell.theory.activation import Activation
from initwell.theory.activations import activation

# A signal goes through these on its way to the activation; none of them bends it.
_PASSED = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    padding._ConstantPadNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    batchnorm._NormBase,
    dropout._DropoutNd,
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
)
_WEIGHTED = (nn.Linear, conv._ConvNd, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_SOFTMAX = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
_BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Found(Record):
    """What follows a layer, and how that is known.

    Attributes:
        activation: the activation; None where none follows.
        why: words that finish "gain g for relu (…)" or "gain 1 (…)".
    """

    activation: Activation | None
    why: str


def activation_of(module: nn.Module) -> Activation | None:
    """Recognize a module as a pointwise activation or a gate; None for any other module.

    Args:
        module: any module. The slope of a PReLU is the rms of its parameter as it is now.

    Returns:
        The catalogue's record, or None.

    >>> str(activation_of(nn.LeakyReLU(0.2)))
    'leaky_relu(slope=0.2)'
    """
    if isinstance(module, nn.PReLU) and module.weight.is_meta:
        return activation("prelu", slope=float(module.init))
    try:
        # Asked of its type first: a module that is not in the catalogue is not to be called.
        return activation(type(module)) and activation(module)
    except InitwellError:
        return None


def inside(site: Site) -> Found | None:
    """Tell what follows within the layer's own module, or within a block of PyTorch's that contains it.

    Args:
        site: a weight in its place.

    Returns:
        What follows; None where the module's own output comes next.
    """
    module, block = site.chain[-1], next((m for m in reversed(site.chain) if isinstance(m, _BLOCKS)), None)
    if site.role == "embedding":
        return Found(None, "an embedding is looked up")
    if any(isinstance(m, nn.MultiheadAttention) for m in site.chain):
        return Found(None, "no pointwise activation follows within attention")
    if isinstance(module, (nn.RNN, nn.RNNCell)):
        return Found(activation(str(module.nonlinearity)), "its own nonlinearity")
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return Found(None, "its gates follow, which have no gain of their own")
    if block is not None and module is block.linear1:
        found = activation(block.activation)
        return Found(found, f"within {type(block).__name__}")
    if block is not None and module is block.linear2:
        return Found(None, f"no activation follows within {type(block).__name__}")
    return None


def follow(site: Site, paths: Mapping[int, str]) -> Found | None:
    """Follow a layer through the Sequential containers around it.

    Args:
        site: a weight in its place.
        paths: id of a module → its path, for the words.

    Returns:
        What follows; None where the modules do not tell, since some ``forward`` of its own decides.
    """
    own = inside(site)
    if own is not None:
        return own
    if len(site.chain) == 1 and not isinstance(site.module, _WEIGHTED):
        return None
    passed: list[str] = []
    for module in _after(site.chain):
        if module is None:
            return None
        place = f"{type(module).__name__} at {paths[id(module)]}"
        if isinstance(module, _PASSED):
            passed.append(place)
            continue
        found = activation_of(module)
        if found is not None:
            return Found(found, f"followed through {', '.join(passed)}" if passed else f"followed to {place}")
        if isinstance(module, _SOFTMAX):
            return Found(None, f"{place} follows, which is not pointwise")
        if isinstance(module, _WEIGHTED):
            return Found(None, f"no activation follows before {place}")
        return None
    return Found(None, "no activation follows: it is the output")


def _after(chain: tuple[nn.Module, ...]) -> Iterator[nn.Module | None]:
    """Yield the modules that run after the last of a chain, in order; None as soon as that is not known."""
    for parent, child in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
        if len(parent._modules) == 1 and not isinstance(parent, nn.Sequential) and _is_wrapper(parent):
            continue
        if type(parent).forward is not nn.Sequential.forward:
            yield None
            return
        siblings = list(parent._modules.values())
        place = next(i for i, sibling in enumerate(siblings) if sibling is child)
        for sibling in siblings[place + 1 :]:
            yield from _leaves(sibling)


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or "_orig_mod" in module._modules


def _leaves(module: nn.Module | None) -> Iterator[nn.Module | None]:
    if module is None or type(module).forward is not nn.Sequential.forward:
        yield module
        return
    for child in module._modules.values():
        yield from _leaves(child)
