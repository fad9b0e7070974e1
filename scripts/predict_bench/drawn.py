"""Architectures of transformers drawn by lot, which no list of the zoo names: built small without knowing them.

A config's class says which attributes it has; those that are sizes by their name get small values, and configs within
it likewise. What cannot be built so, or does not run by itself on random input, is skipped and named.
"""

import inspect
import random
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from predict_bench.compare import limited
from predict_bench.zoo import hub
from predict_bench.zoo.entry import BATCH, VOCABULARY, Entry

_SIZES = {
    64: "hidden_size d_model n_embd dim model_dim embed_dim encoder_hidden_size decoder_hidden_size embedding_size "
    "emb_dim projection_dim d_embed embed_dims hidden_dim conv_dim_size word_embed_proj_dim lru_width",
    128: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner inner_dim ffn_hidden_size "
    "encoder_intermediate_size decoder_intermediate_size dim_feedforward shared_expert_intermediate_size "
    "moe_intermediate_size feed_forward_size dff max_position_embeddings n_positions max_seq_len n_ctx max_length "
    "max_seq_length max_source_positions max_target_positions max_sequence_length state_size_limit",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers num_key_value_heads n_kv_heads "
    "num_experts_per_tok num_kv_heads moe_topk top_k_experts encoder_n_layers decoder_n_layers num_block_records "
    "decoder_layer_num first_k_dense_replace num_blocks",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts n_group",
    16: "head_dim d_kv d_head kv_channels attention_head_size qk_nope_head_dim v_head_dim qk_rope_head_dim "
    "num_mel_bins_limit mamba_d_state linear_key_head_dim linear_value_head_dim kv_lora_rank q_lora_rank "
    "attention_head_dim index_head_dim",
    1: "topk_group n_shared_experts",
    32: "image_size_limit num_queries max_time_positions",
    VOCABULARY: "vocab_size decoder_vocab_size encoder_vocab_size text_vocab_size",
}
SMALL: Mapping[str, Any] = {
    **{name: size for size, names in _SIZES.items() for name in names.split()},
    **dict.fromkeys(
        ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "mask_time_prob", "mask_feature_prob"), 0.0
    ),
    "apply_spec_augment": False,
    "use_cache": False,
    "image_size": 64,
    "patch_size": 8,
}
"""Attribute → small value, where a config has the attribute and its default is a number."""
_AS_MANY = dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 4)
VARIANTS: tuple[tuple[Mapping[str, Any], bool], ...] = ((SMALL, True), ({**SMALL, **_AS_MANY}, True), (SMALL, False))
"""Small values, and whether the widths and depths of stages are made small too; the first that runs is taken."""
MOST = 20_000_000
LIMIT = 60


class CannotBuildError(Exception):
    """An architecture that is skipped; says why."""


def order(seed: int) -> list[str]:
    """Return the model types that the zoo has not, in an order drawn by lot."""
    auto = import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING_NAMES
    known = {small.prefix for small in hub.smalls().values()}
    names = [kind for kind, model in sorted(auto.items()) if _prefix(model) not in known]
    random.Random(seed).shuffle(names)
    return names


def _prefix(model: str | tuple[str, ...]) -> str:
    first = model if isinstance(model, str) else model[0]
    return first.partition("Model")[0].partition("For")[0]


def small_config(kind: type, variant: int = 0, depth: int = 0) -> Any:
    """Return a small config of a class, with small configs within it down to the third.

    Raises:
        CannotBuildError: the class refuses.
    """
    try:
        default = kind()
    except Exception as error:
        raise CannotBuildError(f"its config has no default: {error}") from error
    sizes, stages = VARIANTS[variant]
    given: dict[str, Any] = {}
    for name, value in vars(default).items():
        if name in sizes and isinstance(value, (int, float)):
            given[name] = min(value, sizes[name]) if not isinstance(value, bool) else sizes[name]
        elif name.endswith("_token_id") and isinstance(value, int):
            given[name] = min(value, 3)
        elif stages and name in ("depths", "layers_per_stage", "num_blocks") and isinstance(value, (list, tuple)):
            given[name] = [1] * len(value)
        elif stages and name in ("hidden_sizes", "embed_dims") and isinstance(value, (list, tuple)):
            given[name] = [max(16, v // 4 // 16 * 16) for v in value]
    inner = getattr(kind, "sub_configs", {}) if depth < 3 else {}
    for name in inner:
        if hasattr(getattr(default, name, None), "model_type"):
            given[name] = small_config(type(getattr(default, name)), variant, depth + 1)
    try:
        return kind(**given)
    except Exception as error:
        raise CannotBuildError(f"its config takes no small sizes: {error}") from error


def built(name: str, variant: int = 0) -> nn.Module:
    """Build an architecture small, in training mode.

    Raises:
        CannotBuildError: it cannot be built so, or is not small.
    """
    auto = import_module("transformers.models.auto")
    config = small_config(auto.configuration_auto.CONFIG_MAPPING[name], variant)
    config._attn_implementation = "eager"
    listed = auto.modeling_auto.MODEL_MAPPING_NAMES[name]
    kind = getattr(import_module("transformers"), listed if isinstance(listed, str) else listed[0])
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in kind(config).parameters())
        if size > MOST:
            raise CannotBuildError(f"{size / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model: nn.Module = kind(config).train()
    except CannotBuildError:
        raise
    except Exception as error:
        raise CannotBuildError(f"not with small sizes: {type(error).__name__}: {error}") from error
    return model


def _ids(length: int, seed: int = 0) -> Tensor:
    # From 4 up: the numbers below are the special tokens of every small config.
    return torch.randint(4, VOCABULARY, (BATCH, length), generator=torch.Generator().manual_seed(seed))


def _images(config: Any) -> Tensor:
    size = _found(config, "image_size", 64)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return torch.randn(BATCH, _found(config, "num_channels", 3), height, width, generator=_generator())


def _found(config: Any, name: str, default: Any) -> Any:
    parts = [config, *(getattr(config, part, None) for part in ("vision_config", "audio_config", "encoder_config"))]
    return next((v for v in (getattr(part, name, None) for part in parts) if v), default)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def batches(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield batches that a model may take: its main input, then others that its forward has a name for."""
    config, names = model.config, set(inspect.signature(model.forward).parameters)
    mels = _found(config, "num_mel_bins", _found(config, "feature_size", 80))
    makers = {
        "input_ids": lambda: {"input_ids": _ids(24)},
        "pixel_values": lambda: {"pixel_values": _images(config)},
        "input_values": lambda: {"input_values": torch.randn(BATCH, 4000, generator=_generator())},
        "input_features": lambda: {"input_features": torch.randn(BATCH, mels, 64, generator=_generator())},
    }
    main = getattr(model, "main_input_name", "input_ids")
    for name in sorted(makers, key=lambda name: name != main):
        if name not in names:
            continue
        batch = makers[name]()
        if "decoder_input_ids" in names:
            yield {**batch, "decoder_input_ids": _ids(16, 1)}
        yield batch
        if name == "input_features":
            yield {name: batch[name].transpose(1, 2)}
        if name != "pixel_values" and "pixel_values" in names:
            yield {**batch, "pixel_values": _images(config)}


def entry(name: str) -> Entry:
    """Return an architecture that runs by itself on random input.

    Raises:
        CannotBuildError: it cannot be built, or does not run; says why.
    """
    reasons = []
    for variant in range(len(VARIANTS)):
        try:
            with limited(LIMIT):
                return _running(name, variant)
        except CannotBuildError as error:
            reasons.append(str(error))
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
    raise CannotBuildError(reasons[0])


def _running(name: str, variant: int) -> Entry:
    model, reasons = built(name, variant), list[str]()
    for batch in batches(model):
        try:
            started = time.perf_counter()
            with torch.no_grad():
                model(**batch)
            if time.perf_counter() - started > 5:
                raise CannotBuildError("its forward takes more than 5 seconds")
        except CannotBuildError:
            raise
        except Exception as error:
            reasons.append(f"{'+'.join(batch)}: {type(error).__name__}: {error}")
            continue
        return _entry(name, variant, batch)
    raise CannotBuildError("runs on none of the inputs tried: " + "; ".join(reasons or ["no known input"]))


def _entry(name: str, variant: int, batch: Mapping[str, Any]) -> Entry:
    return Entry(lambda: built(name, variant), lambda: dict(batch))
