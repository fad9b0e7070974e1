"""A scheme made of two initializers: one for convolutions, one for every other weight."""

from dataclasses import dataclass

from initwell.apply.schemes.base import Choice, Scheme, conventional, from_initializer
from initwell.apply.sites import Site
from initwell.initializers.base import Initializer


@dataclass(frozen=True)
class ByKind(Scheme):
    """One initializer for convolutions, another for matrices; biases 0, norms the identity.

    Args:
        convolutions: the rule for convolutions, transposed ones included.
        others: the rule for every other weight and embedding.

    >>> from initwell.initializers.structured import dirac, identity
    >>> ByKind(dirac(), identity()).describe()
    'dirac, gain 1; elsewhere identity, gain 1'
    """

    convolutions: Initializer
    others: Initializer

    @property
    def needs_activation(self) -> bool:
        """Whether it asks what follows a layer."""
        return False

    def describe(self) -> str:
        """Return both descriptions."""
        return f"{self.convolutions.describe()}; elsewhere {self.others.describe()}"

    def weight(self, site: Site) -> Choice:
        """Apply the initializer for this kind of layer."""
        convolution = site.layout is not None and site.layout.kind in ("conv", "conv_transpose")
        return from_initializer(self.convolutions if convolution else self.others, site)

    def rest(self, site: Site) -> Choice:
        """Start biases at 0 and norms as the identity."""
        return conventional(site)
