"""initwell gives every layer of a deep network a healthy start.

The public names are loaded on first use, so that ``import initwell`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from initwell._version import __version__ as __version__

if TYPE_CHECKING:
    from initwell.apply.plan import plan as plan
    from initwell.apply.receipt import Receipt as Receipt
    from initwell.apply.record import Plan as Plan
    from initwell.apply.schemes.kaiming import Kaiming as Kaiming
    from initwell.apply.schemes.registry import scheme as scheme
    from initwell.apply.schemes.registry import scheme_names as scheme_names
    from initwell.apply.schemes.xavier import Xavier as Xavier
    from initwell.apply.write import init_ as init_
    from initwell.errors import InitwellError as InitwellError
    from initwell.experiments.compare import compare as compare
    from initwell.experiments.comparison import Comparison as Comparison
    from initwell.experiments.data import load as load
    from initwell.initializers import caffe as caffe
    from initwell.initializers.basic import constant as constant
    from initwell.initializers.basic import normal as normal
    from initwell.initializers.basic import small_random as small_random
    from initwell.initializers.basic import truncated_normal as truncated_normal
    from initwell.initializers.basic import uniform as uniform
    from initwell.initializers.basic import zeros as zeros
    from initwell.initializers.layout import Layout as Layout
    from initwell.initializers.orthogonal import delta_orthogonal as delta_orthogonal
    from initwell.initializers.orthogonal import orthogonal as orthogonal
    from initwell.initializers.orthogonal import scaled_uniform_orthogonal as scaled_uniform_orthogonal
    from initwell.initializers.prototxt import parse_filler as parse_filler
    from initwell.initializers.scaling import inverse_sqrt as inverse_sqrt
    from initwell.initializers.scaling import lecun as lecun
    from initwell.initializers.structured import bernoulli_sparse as bernoulli_sparse
    from initwell.initializers.structured import bilinear as bilinear
    from initwell.initializers.structured import dirac as dirac
    from initwell.initializers.structured import identity as identity
    from initwell.initializers.structured import positive_unitball as positive_unitball
    from initwell.initializers.structured import sparse as sparse
    from initwell.measurement.debug_info import caffe_debug_info as caffe_debug_info
    from initwell.measurement.measurement import Measurement as Measurement
    from initwell.measurement.probe import measure as measure
    from initwell.propagate.dry import dry as dry
    from initwell.propagate.given.described import signal as signal
    from initwell.propagate.moments.signal import Signal as Signal
    from initwell.propagate.predict import predict as predict
    from initwell.propagate.result.prediction import Prediction as Prediction
    from initwell.theory.activation import Activation as Activation
    from initwell.theory.activations import activation as activation
    from initwell.theory.activations import activation_names as activation_names
    from initwell.theory.chain import Chain as Chain
    from initwell.theory.chain import ChainLayer as ChainLayer
    from initwell.theory.chain import chain as chain
    from initwell.theory.gain import Gain as Gain
    from initwell.theory.gain import gain as gain

# Where each public name is defined; the imports above say the same to type checkers, and a test holds them equal.
_PUBLIC: dict[str, str] = {
    "Activation": "initwell.theory.activation",
    "activation": "initwell.theory.activations",
    "activation_names": "initwell.theory.activations",
    "bernoulli_sparse": "initwell.initializers.structured",
    "bilinear": "initwell.initializers.structured",
    "caffe": "initwell.initializers.caffe",
    "caffe_debug_info": "initwell.measurement.debug_info",
    "Chain": "initwell.theory.chain",
    "chain": "initwell.theory.chain",
    "ChainLayer": "initwell.theory.chain",
    "compare": "initwell.experiments.compare",
    "Comparison": "initwell.experiments.comparison",
    "constant": "initwell.initializers.basic",
    "delta_orthogonal": "initwell.initializers.orthogonal",
    "dirac": "initwell.initializers.structured",
    "dry": "initwell.propagate.dry",
    "Gain": "initwell.theory.gain",
    "gain": "initwell.theory.gain",
    "identity": "initwell.initializers.structured",
    "init_": "initwell.apply.write",
    "InitwellError": "initwell.errors",
    "inverse_sqrt": "initwell.initializers.scaling",
    "Kaiming": "initwell.apply.schemes.kaiming",
    "Layout": "initwell.initializers.layout",
    "lecun": "initwell.initializers.scaling",
    "load": "initwell.experiments.data",
    "measure": "initwell.measurement.probe",
    "Measurement": "initwell.measurement.measurement",
    "normal": "initwell.initializers.basic",
    "orthogonal": "initwell.initializers.orthogonal",
    "parse_filler": "initwell.initializers.prototxt",
    "Plan": "initwell.apply.record",
    "plan": "initwell.apply.plan",
    "positive_unitball": "initwell.initializers.structured",
    "predict": "initwell.propagate.predict",
    "Prediction": "initwell.propagate.result.prediction",
    "Receipt": "initwell.apply.receipt",
    "scaled_uniform_orthogonal": "initwell.initializers.orthogonal",
    "scheme": "initwell.apply.schemes.registry",
    "scheme_names": "initwell.apply.schemes.registry",
    "Signal": "initwell.propagate.moments.signal",
    "signal": "initwell.propagate.given.described",
    "small_random": "initwell.initializers.basic",
    "sparse": "initwell.initializers.structured",
    "truncated_normal": "initwell.initializers.basic",
    "uniform": "initwell.initializers.basic",
    "Xavier": "initwell.apply.schemes.xavier",
    "zeros": "initwell.initializers.basic",
}


# For ``from initwell import *``, which looks into no __getattr__ for what it is not told of.
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'initwell' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    # A module that is itself public, such as ``caffe``, is handed out whole.
    value = module if module.__name__.endswith(f".{name}") and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(["__version__", *_PUBLIC])
