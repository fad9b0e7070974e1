"""The activations made of exponentials, error functions and sines."""

import math

import numpy as np

from initwell.theory import closed_forms
from initwell.theory.activation import Activation, Array, require

_TANH_GELU = math.sqrt(2 / math.pi)


def sigmoid_of(x: Array) -> Array:
    """Evaluate 1/(1 + exp(−x)) to full relative accuracy, without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1 + e))


def softplus_of(x: Array) -> Array:
    """Evaluate log(1 + exp(x)) without overflow."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def erf_of(x: Array) -> Array:
    """Evaluate the error function by C's own, which spares the import of SciPy."""
    flat = np.ravel(x)
    return np.fromiter(map(math.erf, flat.tolist()), np.float64, flat.size).reshape(np.shape(x))


def _normal_density(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi))


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + erf_of(x / math.sqrt(2)))


def _expm1_below(x: Array, rate: float) -> Array:
    return np.asarray(np.expm1(rate * np.minimum(x, 0)))


def _exponential_unit(
    name: str, scale: float, alpha: float, rate: float, parameters: dict[str, float], citation: str
) -> Activation:
    below, above = scale * alpha, scale
    return Activation(
        name=name,
        fn=lambda x: np.where(x > 0, above * x, below * _expm1_below(x, rate)),
        derivative=lambda x: np.where(x > 0, above, below * rate * np.exp(rate * np.minimum(x, 0))),
        kinks=(0.0,),
        parameters=parameters,
        closed_forms=closed_forms.exponential_unit(scale, alpha, rate),
        citation=citation,
    )


def elu(alpha: float = 1.0) -> Activation:
    """Exponential linear unit, x or alpha·(exp(x) − 1)."""
    return _exponential_unit("elu", 1.0, alpha, 1.0, {"alpha": alpha}, "Clevert, Unterthiner & Hochreiter, ICLR 2016")


def selu() -> Activation:
    """Scaled ELU, whose fixed point is mean 0 and variance 1."""
    return _exponential_unit("selu", 1.0507009873554805, 1.6732632423543772, 1.0, {}, "Klambauer et al., NIPS 2017")


def celu(alpha: float = 1.0) -> Activation:
    """Continuously differentiable ELU, x or alpha·(exp(x/alpha) − 1)."""
    require(alpha > 0, "celu alpha", alpha, "Give a number above 0.")
    return _exponential_unit("celu", 1.0, alpha, 1 / alpha, {"alpha": alpha}, "Barron, arXiv:1704.07483")


def gelu() -> Activation:
    """Gaussian error linear unit, x·Φ(x)."""
    return Activation(
        name="gelu",
        fn=lambda x: x * _normal_cdf(x),
        derivative=lambda x: _normal_cdf(x) + x * _normal_density(x),
        closed_forms=closed_forms.normal_gate(),
        citation="Hendrycks & Gimpel, arXiv:1606.08415",
    )


def gelu_tanh() -> Activation:
    """The tanh approximation of GELU."""

    def inner(x: Array) -> Array:
        return np.asarray(np.tanh(_TANH_GELU * (x + 0.044715 * x * x * x)))

    def derivative(x: Array) -> Array:
        t = inner(x)
        return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _TANH_GELU * (1 + 3 * 0.044715 * x * x))

    return Activation(
        name="gelu_tanh",
        fn=lambda x: 0.5 * x * (1 + inner(x)),
        derivative=derivative,
        citation="Hendrycks & Gimpel, arXiv:1606.08415",
    )


def _swish(name: str, beta: float, parameters: dict[str, float], citation: str) -> Activation:
    def derivative(x: Array) -> Array:
        s = sigmoid_of(beta * x)
        return np.asarray(s + beta * x * s * (1 - s))

    return Activation(
        name=name,
        fn=lambda x: x * sigmoid_of(beta * x),
        derivative=derivative,
        parameters=parameters,
        citation=citation,
    )


def quick_gelu() -> Activation:
    """The sigmoid approximation of GELU, x·sigmoid(1.702x)."""
    return _swish("quick_gelu", 1.702, {}, "Hendrycks & Gimpel, arXiv:1606.08415")


def silu(beta: float = 1.0) -> Activation:
    """Sigmoid linear unit or swish, x·sigmoid(beta·x)."""
    return _swish("silu", beta, {"beta": beta} if beta != 1.0 else {}, "Elfwing, Uchibe & Doya, Neural Networks 2018")


def mish() -> Activation:
    """Mish, x·tanh(softplus(x))."""

    def derivative(x: Array) -> Array:
        t = np.tanh(softplus_of(x))
        return np.asarray(t + x * (1 - t * t) * sigmoid_of(x))

    return Activation(
        name="mish",
        fn=lambda x: x * np.tanh(softplus_of(x)),
        derivative=derivative,
        citation="Misra, BMVC 2020",
    )


def softplus(beta: float = 1.0) -> Activation:
    """Softplus, log(1 + exp(beta·x))/beta."""
    require(beta > 0, "softplus beta", beta, "Give a number above 0.")
    return Activation(
        name="softplus",
        fn=lambda x: softplus_of(beta * x) / beta,
        derivative=lambda x: sigmoid_of(beta * x),
        parameters={"beta": beta},
        citation="Dugas et al., NIPS 2001",
    )


def squareplus(b: float = 4.0) -> Activation:
    """Squareplus, (x + √(x² + b))/2."""
    require(b > 0, "squareplus b", b, "Give a number above 0.")
    return Activation(
        name="squareplus",
        fn=lambda x: 0.5 * (x + np.sqrt(x * x + b)),
        derivative=lambda x: 0.5 * (1 + x / np.sqrt(x * x + b)),
        parameters={"b": b},
        citation="Barron, arXiv:2112.11687",
    )


def softsign() -> Activation:
    """Softsign, x/(1 + |x|)."""
    return Activation(
        name="softsign",
        fn=lambda x: x / (1 + np.abs(x)),
        derivative=lambda x: 1 / np.square(1 + np.abs(x)),
        kinks=(0.0,),
        citation="Turian, Bergstra & Bengio, NAACL 2009",
        odd=True,
        bounded=True,
    )


def _scaled_tanh(name: str, height: float, rate: float, citation: str) -> Activation:
    return Activation(
        name=name,
        fn=lambda x: height * np.tanh(rate * x),
        derivative=lambda x: height * rate * (1 - np.square(np.tanh(rate * x))),
        citation=citation,
        odd=True,
        bounded=True,
    )


def tanh() -> Activation:
    """Hyperbolic tangent."""
    return _scaled_tanh("tanh", 1.0, 1.0, "LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998")


def lecun_tanh() -> Activation:
    """LeCun's scaled tanh, 1.7159·tanh(2x/3)."""
    return _scaled_tanh("lecun_tanh", 1.7159, 2 / 3, "LeCun, Bottou, Orr & Müller, Efficient BackProp, 1998")


def sigmoid() -> Activation:
    """Logistic sigmoid, 1/(1 + exp(−x)); its mean is 1/2 by symmetry."""

    def derivative(x: Array) -> Array:
        s = sigmoid_of(x)
        return np.asarray(s * (1 - s))

    return Activation(
        name="sigmoid",
        fn=sigmoid_of,
        derivative=derivative,
        closed_forms={"mean": lambda q: 0.5},
        citation="Rumelhart, Hinton & Williams, Nature 1986",
        bounded=True,
    )


def logsigmoid() -> Activation:
    """Logarithm of the sigmoid, −softplus(−x)."""
    return Activation(
        name="logsigmoid",
        fn=lambda x: -softplus_of(-x),
        derivative=lambda x: sigmoid_of(-x),
        citation="PyTorch",
    )


def tanhshrink() -> Activation:
    """Tanh shrinkage, x − tanh(x)."""
    return Activation(
        name="tanhshrink",
        fn=lambda x: x - np.tanh(x),
        derivative=lambda x: np.square(np.tanh(x)),
        citation="PyTorch",
        odd=True,
    )


def arctan() -> Activation:
    """Inverse tangent."""
    return Activation(
        name="arctan",
        fn=np.arctan,
        derivative=lambda x: 1 / (1 + x * x),
        citation="Jones, IEEE Trans. Neural Networks 1990",
        odd=True,
        bounded=True,
    )


def error_function() -> Activation:
    """Error function, erf(x)."""
    return Activation(
        name="erf",
        fn=erf_of,
        derivative=lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
        closed_forms=closed_forms.error_function(),
        citation="Williams, NIPS 1996",
        odd=True,
        bounded=True,
    )


def gaussian() -> Activation:
    """Gaussian bell, exp(−x²)."""
    return Activation(
        name="gaussian",
        fn=lambda x: np.exp(-x * x),
        derivative=lambda x: -2 * x * np.exp(-x * x),
        closed_forms=closed_forms.bell(),
        citation="Broomhead & Lowe, Complex Systems 1988",
        bounded=True,
    )


def sin() -> Activation:
    """Sine."""
    return Activation(
        name="sin",
        fn=np.sin,
        derivative=np.cos,
        closed_forms=closed_forms.sine(),
        citation="Sitzmann et al., NeurIPS 2020",
        odd=True,
        bounded=True,
    )


def cos() -> Activation:
    """Cosine."""
    return Activation(
        name="cos",
        fn=np.cos,
        derivative=lambda x: -np.sin(x),
        closed_forms=closed_forms.cosine(),
        citation="Rahimi & Recht, NIPS 2007",
        bounded=True,
    )


def snake() -> Activation:
    """Snake, x + sin²(x)."""
    return Activation(
        name="snake",
        fn=lambda x: x + np.square(np.sin(x)),
        derivative=lambda x: 1 + np.sin(2 * x),
        closed_forms=closed_forms.snake(),
        citation="Ziyin, Hartwig & Ueda, NeurIPS 2020",
    )


ENTRIES = {
    "elu": elu,
    "selu": selu,
    "celu": celu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
    "mish": mish,
    "softplus": softplus,
    "squareplus": squareplus,
    "softsign": softsign,
    "tanh": tanh,
    "lecun_tanh": lecun_tanh,
    "sigmoid": sigmoid,
    "logsigmoid": logsigmoid,
    "tanhshrink": tanhshrink,
    "arctan": arctan,
    "erf": error_function,
    "gaussian": gaussian,
    "sin": sin,
    "cos": cos,
    "snake": snake,
}
