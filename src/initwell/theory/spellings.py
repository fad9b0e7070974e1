"""How PyTorch and its libraries spell the activations of the catalogue; strings only, PyTorch is not loaded."""

from dataclasses import dataclass

_NN = "torch.nn.modules.activation."
_HF = "transformers.activations."
_TIMM = "timm.layers.activations."


@dataclass(frozen=True)
class Spelling:
    """The names that one activation goes by.

    Attributes:
        name: the canonical name.
        modules: qualified names of module types.
        functions: names of functions of torch, torch.nn.functional, torch.special and torch.Tensor, and of ATen's
            overload packets; the trailing underscore of an in-place version is left out.
        attributes: pairs (attribute of the module, parameter of the catalogue entry); of two for one parameter the
            later counts, unless it is a tensor without values.
        when: (attribute, value) that a module must have for this spelling; empty for none.
        aliases: other names a user may write.
    """

    name: str
    modules: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    when: tuple[str, str] | tuple[()] = ()
    aliases: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        """List every PyTorch spelling: module types, then bare names of functions, then ATen packets."""
        return self.modules + self.functions + tuple(f"aten.{f}" for f in self.functions)


# A spelling with a condition comes before the one without.
SPELLINGS = (
    Spelling("identity", ("torch.nn.modules.linear.Identity",), aliases=("linear", "none", "id")),
    Spelling("relu", (_NN + "ReLU",), ("relu",)),
    Spelling("leaky_relu", (_NN + "LeakyReLU",), ("leaky_relu",), (("negative_slope", "slope"),), aliases=("lrelu",)),
    Spelling(
        "prelu", (_NN + "PReLU", _TIMM + "PReLU"), ("prelu", "_prelu_kernel"), (("init", "slope"), ("weight", "slope"))
    ),
    Spelling("rrelu", (_NN + "RReLU",), ("rrelu", "rrelu_with_noise"), (("lower", "lower"), ("upper", "upper"))),
    Spelling("relu6", (_NN + "ReLU6",), ("relu6",)),
    Spelling("relu2", (_HF + "ReLUSquaredActivation",), aliases=("relu^2", "relu²", "squared_relu", "relu_squared")),
    Spelling("abs", functions=("abs", "absolute"), aliases=("absolute",)),
    Spelling(
        "threshold", (_NN + "Threshold",), ("threshold", "_threshold"), (("threshold", "threshold"), ("value", "value"))
    ),
    Spelling("hardtanh", (_NN + "Hardtanh",), ("hardtanh",), (("min_val", "low"), ("max_val", "high"))),
    Spelling("hardsigmoid", (_NN + "Hardsigmoid", _TIMM + "HardSigmoid"), ("hardsigmoid",)),
    Spelling("hardswish", (_NN + "Hardswish", _TIMM + "HardSwish"), ("hardswish",)),
    Spelling("hard_mish", (_TIMM + "HardMish",)),
    Spelling("softshrink", (_NN + "Softshrink",), ("softshrink",), (("lambd", "threshold"),)),
    Spelling("hardshrink", (_NN + "Hardshrink",), ("hardshrink",), (("lambd", "threshold"),)),
    Spelling("elu", (_NN + "ELU",), ("elu",), (("alpha", "alpha"),)),
    Spelling("selu", (_NN + "SELU",), ("selu",)),
    Spelling("celu", (_NN + "CELU",), ("celu",), (("alpha", "alpha"),)),
    Spelling("gelu_tanh", (_NN + "GELU",), when=("approximate", "tanh")),
    Spelling("gelu", (_NN + "GELU", _HF + "GELUActivation", _TIMM + "GELU"), ("gelu",)),
    Spelling(
        "gelu_tanh",
        (_HF + "NewGELUActivation", _HF + "FastGELUActivation", _HF + "GELUTanh", _TIMM + "GELUTanh"),
        aliases=("gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    ),
    Spelling("quick_gelu", (_HF + "QuickGELUActivation", _TIMM + "QuickGELU")),
    Spelling("silu", (_NN + "SiLU", _HF + "SiLUActivation", _TIMM + "Swish"), ("silu",), aliases=("swish",)),
    Spelling("mish", (_NN + "Mish", _TIMM + "Mish"), ("mish",)),
    # Beyond ``threshold`` PyTorch's softplus is exactly x, 2e-9 off at its default: left out.
    Spelling("softplus", (_NN + "Softplus",), ("softplus",), (("beta", "beta"),)),
    Spelling("softsign", (_NN + "Softsign",), ("softsign",)),
    Spelling("tanh", (_NN + "Tanh", _TIMM + "Tanh"), ("tanh",)),
    Spelling(
        "sigmoid", (_NN + "Sigmoid", _TIMM + "Sigmoid"), ("sigmoid", "expit", "special_expit"), aliases=("logistic",)
    ),
    Spelling("logsigmoid", (_NN + "LogSigmoid",), ("logsigmoid", "log_sigmoid", "log_sigmoid_forward")),
    Spelling("tanhshrink", (_NN + "Tanhshrink",), ("tanhshrink",)),
    Spelling("arctan", functions=("arctan", "atan"), aliases=("atan",)),
    Spelling("erf", functions=("erf", "special_erf")),
    Spelling("sin", functions=("sin",), aliases=("sine",)),
    Spelling("cos", functions=("cos",), aliases=("cosine",)),
    Spelling("glu", (_NN + "GLU",), ("glu",)),
    Spelling("bilinear", aliases=("bilinear_gate",)),
)
