"""What a scheme is: for each parameter in its place, what to draw, and why."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from initwell.apply.sites import Site
from initwell.errors import ShapeError
from initwell.initializers.base import Initializer
from initwell.initializers.distributions import Constant, Distribution
from initwell.records import Record


@dataclass(frozen=True)
class Choice(Record):
    """What a scheme decides for one parameter.

    Attributes:
        initializer: what it is called in a table.
        distribution: what to draw; None leaves the parameter as it is.
        reason: why, in plain words.
        fan: the fan that the standard deviation was made from.
        gain: the gain it was made from.
        citation: BibTeX of what was used, if any.
    """

    initializer: str
    distribution: Distribution | None
    reason: str
    fan: float | None = None
    gain: float | None = None
    citation: str = ""


class Scheme(ABC):
    """Decides for every parameter of a model; a leaf is a frozen dataclass whose fields are its options."""

    @property
    @abstractmethod
    def needs_activation(self) -> bool:
        """Whether it asks what follows a layer, so that the model must be looked through for it."""

    @abstractmethod
    def describe(self) -> str:
        """Return its name with its options, in a few words."""

    @abstractmethod
    def weight(self, site: Site) -> Choice:
        """Decide for a weight, or for whatever parameter a rule has named.

        Args:
            site: the parameter in its place, with a layout.

        Returns:
            What to draw, and why.

        Raises:
            ShapeError: the shape is one that this scheme has no meaning for.
        """

    @abstractmethod
    def rest(self, site: Site) -> Choice:
        """Decide for a bias, a norm's scale or offset, a slope, or a parameter that is not known."""


@dataclass(frozen=True)
class Entry:
    """A scheme in the registry.

    Attributes:
        name: what the caller writes.
        build: makes the scheme with its default options.
        summary: one line for a list of schemes.
    """

    name: str
    build: Callable[[], Scheme]
    summary: str


def kept(reason: str) -> Choice:
    """Leave a parameter as it is, and say why."""
    return Choice("left alone", None, reason)


def conventional(site: Site) -> Choice:
    """Decide what is no weight as nearly every paper does: biases 0, norms the identity, the rest left alone.

    Args:
        site: a parameter that is neither weight nor embedding.

    Returns:
        Zero for a bias or a norm's offset, one for a norm's scale; otherwise the parameter is left alone.
    """
    if site.role == "bias":
        return Choice("zeros", Constant(0.0), "a bias starts at 0")
    if site.role == "norm_bias":
        return Choice("zeros", Constant(0.0), "a norm's offset starts at 0")
    if site.role == "norm_weight":
        return Choice("ones", Constant(1.0), "a norm's scale starts at 1")
    if site.role == "slope":
        return kept("slopes keep the value that the module was built with")
    return kept(site.note)


def from_initializer(initializer: Initializer, site: Site, why: str = "") -> Choice:
    """Ask an initializer what to draw for one site.

    Args:
        initializer: the initializer.
        site: a parameter with a layout.
        why: what to add to the reason.

    Returns:
        The choice, its reason made of what the initializer did with the layout.

    Raises:
        ShapeError: the site has no layout, or the initializer cannot fill that shape.
    """
    cure = "Give that layer another scheme with rules={...}, or name the parameters that you mean with only=."
    if site.layout is None:
        raise ShapeError("scheme", f"{initializer.describe()} for {site.parameter!r} {site.shape}: {site.note}", cure)
    try:
        recipe = initializer.recipe(site.layout)
    except ShapeError as error:
        got = f"{initializer.describe()} for {site.parameter!r}, shape {error.got}"
        raise ShapeError("scheme", got, f"{error.cure} {cure}") from error
    terms = [initializer.describe()]
    if recipe.fan is not None:
        # "lecun normal, fan in" already names the fan; what lacks is the number.
        terms = [f"{terms[0]} {recipe.fan:g}"] if "fan " in terms[0] else [*terms, f"fan {recipe.fan:g}"]
    if recipe.gain is not None and recipe.gain != 1:
        terms.append(f"gain {recipe.gain:.4g}")
    note = "" if recipe.note in terms[0] else recipe.note
    reason = "; ".join(part for part in (", ".join(terms), note, why) if part)
    return Choice(initializer.describe(), recipe.distribution, reason, recipe.fan, recipe.gain, initializer.citation)
