"""What the ops of a trace are to a reader of it: activations, contractions, and ops that a signal passes through.

Names are out-of-place packets, as ``Op.functional`` gives them: an in-place op is what its out-of-place twin is.
"""

from collections.abc import Mapping

ACTIVATIONS: Mapping[str, str] = {
    "aten.relu": "relu",
    "aten.relu6": "relu6",
    "aten.leaky_relu": "leaky_relu",
    "aten._prelu_kernel": "prelu",
    "aten.prelu": "prelu",
    "aten.rrelu_with_noise": "rrelu",
    "aten.elu": "elu",
    "aten.celu": "celu",
    "aten.selu": "selu",
    "aten.gelu": "gelu",
    "aten.silu": "silu",
    "aten.mish": "mish",
    "aten.softplus": "softplus",
    "aten.tanh": "tanh",
    "aten.sigmoid": "sigmoid",
    "aten.hardtanh": "hardtanh",
    "aten.hardswish": "hardswish",
    "aten.hardsigmoid": "hardsigmoid",
    "aten.log_sigmoid_forward": "logsigmoid",
    "aten.softshrink": "softshrink",
    "aten.hardshrink": "hardshrink",
    "aten.threshold": "threshold",
    "aten.sin": "sin",
    "aten.glu": "glu",
}
"""Ops that apply a nonlinearity entry by entry → the activation's name."""

_FROM_SHAPE_NAMES = """
    empty_like zeros_like ones_like full_like rand_like randn_like randint_like bernoulli new_empty new_zeros new_ones
    new_full new_empty_strided
"""
FROM_SHAPE = frozenset(f"aten.{name}" for name in _FROM_SHAPE_NAMES.split())
"""Ops that read no entry of their input, only its shape; dropout masks start with one."""

_BENDING_NAMES = """
    pow exp expm1 erf abs neg clamp clamp_min clamp_max log log1p sqrt square maximum minimum reciprocal rsqrt cos
    atan asinh where gt lt ge le
"""
BENDING = frozenset(f"aten.{name}" for name in _BENDING_NAMES.split())
"""Pointwise ops of which activations are written by hand."""

ALONE: Mapping[str, str] = {"aten.abs": "abs", "aten.atan": "arctan", "aten.cos": "cos", "aten.erf": "erf"}
"""Bending ops that are an activation by themselves where a forward makes nothing more of them → its name."""

RECTIFIERS = frozenset({"relu", "relu6", "rrelu", "threshold"})
"""Activations that give an exact zero for every negative input, so that a unit can be dead."""

CONTRACTIONS: Mapping[str, str] = {
    "aten.addmm": "linear layer with a bias",
    "aten.mm": "matrix product",
    "aten.bmm": "batched matrix product",
    "aten.baddbmm": "batched matrix product, added",
    "aten.addbmm": "batched matrix product, summed",
    "aten.addmv": "matrix-vector product, added",
    "aten.mv": "matrix-vector product",
    "aten.dot": "inner product",
    "aten.linear": "linear layer",
    "aten.matmul": "matrix product",
    "aten.convolution": "convolution",
    "aten._convolution": "convolution",
    "aten.convolution_overrideable": "convolution",
    "aten._trilinear": "bilinear layer",
    "aten.embedding": "table look-up",
    "aten._embedding_bag": "sum of table look-ups",
    "aten._grouped_mm": "one matrix product an expert",
}
"""Ops that mix entries with weights or with each other: where the following of a signal ends."""

VIEWS: Mapping[str, str] = dict.fromkeys(
    (
        "aten.view",
        "aten._unsafe_view",
        "aten.reshape",
        "aten._reshape_alias",
        "aten.t",
        "aten.transpose",
        "aten.permute",
        "aten.movedim",
        "aten.unsqueeze",
        "aten.squeeze",
        "aten.expand",
        "aten.select",
        "aten.slice",
        "aten.narrow",
        "aten.split",
        "aten.split_with_sizes",
        "aten.unsafe_split",
        "aten.unsafe_split_with_sizes",
        "aten.unsafe_chunk",
        "aten.chunk",
        "aten.unbind",
        "aten.unfold",
        "aten.diagonal",
        "aten.as_strided",
        "aten.alias",
        "aten.detach",
        "aten.lift_fresh",
    ),
    "shows the same entries under another shape",
)
"""Ops that make no new entry."""

COPIES: Mapping[str, str] = dict.fromkeys(
    ("aten.clone", "aten.contiguous", "aten._to_copy", "aten.to", "aten.lift_fresh_copy", "aten.view_copy"),
    "copies the same entries, perhaps to another dtype or layout",
)
"""Ops that write the same entries to another place."""

_NORM = "a norm rescales; it does not bend"
_POOL = "pooling picks or averages entries of one channel"
TRANSPARENT: Mapping[str, str] = {
    **VIEWS,
    **COPIES,
    "aten.add": "adding a bias or a residual branch leaves the sum on its way to the same activation",
    "aten.sub": "as an addition",
    "aten.mul": "a mask, a constant or a learned scale",
    "aten.div": "as a multiplication",
    "aten.native_dropout": "dropout zeroes and rescales",
    "aten.native_batch_norm": _NORM,
    "aten._native_batch_norm_legit": _NORM,
    "aten._native_batch_norm_legit_functional": _NORM,
    "aten._native_batch_norm_legit_no_training": _NORM,
    "aten._batch_norm_with_update": _NORM,
    "aten._batch_norm_no_update": _NORM,
    "aten.cudnn_batch_norm": _NORM,
    "aten.miopen_batch_norm": _NORM,
    "aten.native_layer_norm": _NORM,
    "aten.native_group_norm": _NORM,
    "aten._fused_rms_norm": _NORM,
    "aten.max_pool2d_with_indices": _POOL,
    "aten.max_pool3d_with_indices": _POOL,
    "aten.max_pool1d": _POOL,
    "aten.adaptive_max_pool2d": _POOL,
    "aten.avg_pool1d": _POOL,
    "aten.avg_pool2d": _POOL,
    "aten.avg_pool3d": _POOL,
    "aten._adaptive_avg_pool2d": _POOL,
    "aten._adaptive_avg_pool3d": _POOL,
    "aten.mean": "global average pooling",
    "aten.cat": "concatenation keeps every entry",
    "aten.stack": "stacking keeps every entry",
    "aten.constant_pad_nd": "padding keeps every entry",
    "aten.reflection_pad2d": "padding keeps every entry",
    "aten.replication_pad2d": "padding keeps every entry",
    "aten.upsample_nearest2d": "upsampling repeats entries",
    "aten.upsample_bilinear2d": "upsampling averages neighbours",
    "aten.pixel_shuffle": "a rearrangement of entries",
    "aten.pixel_unshuffle": "a rearrangement of entries",
    "aten.channel_shuffle": "a rearrangement of entries",
    "aten.roll": "a rearrangement of entries",
    "aten.flip": "a rearrangement of entries",
}
"""Ops that a signal passes on its way from a layer to its activation → why that is so."""
