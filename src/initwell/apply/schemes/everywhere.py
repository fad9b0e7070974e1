"""A scheme made of one initializer: every weight by its rule, the rest by convention."""

from dataclasses import dataclass

from initwell.apply.schemes.base import Choice, Scheme, conventional, from_initializer
from initwell.apply.sites import Site
from initwell.initializers.base import Initializer


@dataclass(frozen=True)
class Everywhere(Scheme):
    """One initializer for every weight and embedding, whatever follows it; biases 0, norms the identity.

    Args:
        initializer: the rule.

    >>> from initwell.initializers.scaling import lecun
    >>> Everywhere(lecun()).needs_activation
    False
    """

    initializer: Initializer

    @property
    def needs_activation(self) -> bool:
        """Whether it asks what follows a layer."""
        return False

    def describe(self) -> str:
        """Return the initializer's own description."""
        return self.initializer.describe()

    def weight(self, site: Site) -> Choice:
        """Apply the initializer."""
        return from_initializer(self.initializer, site)

    def rest(self, site: Site) -> Choice:
        """Start biases at 0 and norms as the identity."""
        return conventional(site)
