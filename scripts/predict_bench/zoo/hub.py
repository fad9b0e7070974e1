"""Models of transformers, built from small configs: text, vision and speech. Nothing is downloaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from predict_bench.zoo.entry import VOCABULARY, Entry, Zoo, normal, tokens

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Small:
    """One model of transformers.

    Attributes:
        prefix: its classes are ``prefix + "Config"`` and ``prefix + head``.
        head: such as "Model" or "ForCausalLM".
        config: what its config is given.
        batch: makes the batch.
    """

    prefix: str
    head: str
    config: Config
    batch: Callable[[], Any]

    def build(self) -> nn.Module:
        """Make the model in training mode, with the attention that is written out."""
        library = import_module("transformers")
        config = getattr(library, f"{self.prefix}Config")(**self.config, attn_implementation="eager")
        model: nn.Module = getattr(library, f"{self.prefix}{self.head}")(config)
        return model.train()


LENGTH = 24
IDS: Config = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE: Config = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
BERT: Config = {**IDS, **SHAPE, "max_position_embeddings": 64}
LLAMA: Config = {**BERT, "num_key_value_heads": 2, "use_cache": False}
GPT2: Config = {**IDS, "n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 64, "use_cache": False}
QUIET: Config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _text() -> dict[str, Small]:
    """Return encoders of text: the base model, with its pooler where it has one."""
    batch = tokens(LENGTH)

    def small(prefix: str, head: str = "Model", **config: Any) -> Small:
        return Small(prefix, head, config, batch)

    return {
        "bert": small("Bert", **BERT),
        "bert, no dropout": small("Bert", "ForSequenceClassification", **BERT, **QUIET),
        "roberta": small("Roberta", "ForMaskedLM", **BERT, **QUIET),
        "distilbert": small(
            "DistilBert", **IDS, dim=96, n_layers=3, n_heads=4, hidden_dim=256, max_position_embeddings=64
        ),
        "albert": small("Albert", **BERT, embedding_size=48),
        "electra": small("Electra", **BERT, embedding_size=48),
        "deberta": small("Deberta", **BERT, **QUIET, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        "deberta-v2": small("DebertaV2", **BERT, **QUIET, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        "mpnet": small("MPNet", **BERT),
        "xlnet": small("XLNet", **IDS, d_model=96, n_layer=3, n_head=4, d_inner=256, dropout=0.0),
        "convbert": small("ConvBert", **BERT, **QUIET, embedding_size=96),
        "squeezebert": small("SqueezeBert", **BERT, embedding_size=96),
        "fnet": small("FNet", **BERT, hidden_dropout_prob=0.0),
        "funnel": small("Funnel", **IDS, d_model=96, n_head=4, d_head=24, d_inner=256, block_sizes=[1, 1]),
        "roformer": small("RoFormer", **BERT, embedding_size=96),
        "ernie": small("Ernie", **BERT),
        "esm": small("Esm", **BERT, **QUIET, position_embedding_type="rotary", token_dropout=False),
        "modernbert": small("ModernBert", **BERT, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2),
    }


def _causal() -> dict[str, Small]:
    """Return decoders of text, with logits at every place."""
    batch = tokens(LENGTH)

    def small(prefix: str, head: str = "ForCausalLM", **config: Any) -> Small:
        return Small(prefix, head, config, batch)

    return {
        "gpt2": small("GPT2", "LMHeadModel", **GPT2),
        "gpt2, no dropout": small("GPT2", "LMHeadModel", **GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        "openai-gpt": small("OpenAIGPT", "LMHeadModel", **GPT2),
        "gpt-bigcode": small("GPTBigCode", **GPT2, multi_query=True),
        "codegen": small("CodeGen", **GPT2, rotary_dim=8),
        "gptj": small("GPTJ", **GPT2, rotary_dim=8),
        "gpt-neo": small(
            "GPTNeo",
            **IDS,
            hidden_size=96,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            intermediate_size=256,
            max_position_embeddings=64,
            window_size=8,
            use_cache=False,
        ),
        "gpt-neox": small("GPTNeoX", **BERT, use_cache=False),
        "opt": small("OPT", **_opt(), word_embed_proj_dim=96),
        "bloom": small("Bloom", **IDS, hidden_size=96, n_layer=3, n_head=4, use_cache=False),
        "llama": small("Llama", **LLAMA),
        "mistral": small("Mistral", **LLAMA, sliding_window=8),
        "qwen2": small("Qwen2", **LLAMA),
        "qwen3": small("Qwen3", **LLAMA, head_dim=24),
        "gemma": small("Gemma", **LLAMA, head_dim=24),
        "gemma2": small("Gemma2", **LLAMA, head_dim=24, query_pre_attn_scalar=24, sliding_window=8),
        "phi": small("Phi", **LLAMA),
        "phi3": small("Phi3", **LLAMA),
        "falcon": small("Falcon", **IDS, **SHAPE, use_cache=False, alibi=False),
        "mpt": small("Mpt", **IDS, d_model=96, n_layers=3, n_heads=4, max_seq_len=64, use_cache=False),
        "olmo": small("Olmo", **LLAMA),
        "olmo2": small("Olmo2", **LLAMA),
        "stablelm": small("StableLm", **LLAMA),
        "starcoder2": small("Starcoder2", **LLAMA),
        "cohere": small("Cohere", **LLAMA),
        "granite": small("Granite", **LLAMA, residual_multiplier=0.5),
        "biogpt": small("BioGpt", **BERT, layerdrop=0.0, use_cache=False),
        "ctrl": small(
            "CTRL", "LMHeadModel", **IDS, n_embd=96, n_layer=3, n_head=4, dff=256, n_positions=64, use_cache=False
        ),
    }


def _opt() -> Config:
    return {**IDS, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 256} | {
        "max_position_embeddings": 64,
        "use_cache": False,
        "layerdrop": 0.0,
    }


def _pairs() -> dict[str, Small]:
    """Return encoders with decoders."""
    batch = _ids(decoder_input_ids=True)
    t5: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 96,
        "d_kv": 24,
        "d_ff": 256,
        "num_layers": 2,
        "num_heads": 4,
    }
    t5 |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "use_cache": False}
    bart: dict[str, Any] = {
        **IDS,
        "d_model": 96,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "max_position_embeddings": 64,
    }
    bart |= {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 4), ("ffn_dim", 256))
    }
    bart |= {"use_cache": False, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "decoder_start_token_id": 2}
    head = "ForConditionalGeneration"
    return {
        "t5": Small("T5", head, t5, batch),
        "t5, gated gelu": Small("T5", head, {**t5, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}, batch),
        "mt5": Small("MT5", head, {**t5, "tie_word_embeddings": False}, batch),
        "bart": Small("Bart", head, bart, batch),
        "mbart": Small("MBart", head, bart, batch),
        "pegasus": Small("Pegasus", head, bart, batch),
        "marian": Small("Marian", "MTModel", {**bart, "decoder_vocab_size": VOCABULARY, "dropout": 0.0}, batch),
        "blenderbot": Small("Blenderbot", head, bart, batch),
    }


def _ids(**more: bool) -> Callable[[], Config]:
    names = ["input_ids", *more]
    return lambda: {name: tokens(LENGTH - 4 * i, seed=i)() for i, name in enumerate(names)}


def _vision() -> dict[str, Small]:
    """Return models of images: classifiers, or the backbone."""
    batch = normal(3, 32, 32)
    vit = {**SHAPE, "image_size": 32, "patch_size": 4, "num_labels": 10}

    def small(prefix: str, head: str = "ForImageClassification", **config: Any) -> Small:
        return Small(prefix, head, config, batch)

    levels: dict[str, Any] = {"num_labels": 10, "image_size": 32}
    return {
        "hub vit": small("ViT", **vit),
        "deit": small("DeiT", **vit),
        "beit": small("Beit", **vit, layer_scale_init_value=0.1, drop_path_rate=0.1),
        "data2vec-vision": small("Data2VecVision", **vit, use_relative_position_bias=True, drop_path_rate=0.0),
        "dinov2": small("Dinov2", **vit, drop_path_rate=0.0),
        "vit-msn": small("ViTMSN", **vit),
        "yolos": small("Yolos", "Model", **{**vit, "image_size": [32, 32]}, num_detection_tokens=4),
        "swin": small("Swin", **levels, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4),
        "swinv2": small("Swinv2", **levels, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4),
        "hub convnext": small(
            "ConvNext", num_labels=10, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 2, 1], patch_size=2
        ),
        "convnextv2": small(
            "ConvNextV2", num_labels=10, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 2, 1], patch_size=2
        ),
        "mobilevit": small(
            "MobileViT",
            **levels,
            hidden_sizes=[32, 48, 64],
            neck_hidden_sizes=[16, 24, 32, 32, 48, 64, 96],
            output_stride=32,
        ),
        "hub mobilenet v1": small("MobileNetV1", **levels, depth_multiplier=0.25),
        "hub mobilenet v2": small("MobileNetV2", **levels, depth_multiplier=0.35),
        "hub resnet": small("ResNet", num_labels=10, embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1, 1, 1]),
        "regnet": small(
            "RegNet", num_labels=10, embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], groups_width=16
        ),
        "bit": small(
            "Bit", num_labels=10, embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], num_groups=8
        ),
        "hub efficientnet": small(
            "EfficientNet", **levels, width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640
        ),
        "segformer": small(
            "Segformer",
            num_labels=10,
            depths=[1, 1, 1, 1],
            hidden_sizes=[32, 32, 64, 96],
            num_attention_heads=[1, 2, 2, 4],
        ),
        "pvt": small(
            "Pvt", **levels, depths=[1, 1, 1, 1], hidden_sizes=[32, 32, 64, 96], num_attention_heads=[1, 2, 2, 4]
        ),
        "poolformer": small("PoolFormer", num_labels=10, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 1, 1]),
        "levit": Small(
            "Levit",
            "ForImageClassification",
            {**levels, "image_size": 64, "hidden_sizes": [48, 64, 96], "depths": [1, 1, 1]}
            | {"num_attention_heads": [2, 3, 4], "key_dim": [16, 16, 16]},
            normal(3, 64, 64),
        ),
        "cvt": small(
            "Cvt",
            num_labels=10,
            embed_dim=[24, 48, 96],
            num_heads=[1, 2, 4],
            depth=[1, 2, 3],
            drop_path_rate=[0.0, 0.0, 0.1],
        ),
        "clip vision": small("CLIPVision", "Model", **{k: v for k, v in vit.items() if k != "num_labels"}),
        "siglip vision": small("SiglipVision", "Model", **{k: v for k, v in vit.items() if k != "num_labels"}),
        "vit-mae": small("ViTMAE", "Model", **{k: v for k, v in vit.items() if k != "num_labels"}, mask_ratio=0.5),
    }


def _speech() -> dict[str, Small]:
    """Return models of sound: raw waves, or features."""
    waves: dict[str, Any] = {
        **SHAPE,
        "vocab_size": 40,
        "conv_dim": [32, 48, 64],
        "conv_kernel": [10, 3, 3],
        "conv_stride": [5, 2, 2],
    }
    waves |= {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    waves |= {"layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0}
    stable = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    whisper: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 96,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_mel_bins": 20,
    }
    whisper |= {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 4), ("ffn_dim", 256))
    }
    whisper |= {"max_source_positions": 32, "max_target_positions": 32, "use_cache": False}
    whisper |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    sound = normal(800)
    return {
        "wav2vec2": Small("Wav2Vec2", "Model", waves, sound),
        "wav2vec2, stable": Small("Wav2Vec2", "ForCTC", {**waves, **stable, "hidden_dropout": 0.0}, sound),
        "hubert": Small("Hubert", "Model", waves, sound),
        "wavlm": Small("WavLM", "Model", waves, sound),
        "sew": Small("SEW", "Model", {**waves, "squeeze_factor": 2}, sound),
        "data2vec-audio": Small("Data2VecAudio", "Model", waves, sound),
        "audio spectrogram": Small(
            "AST",
            "Model",
            {**SHAPE, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 32},
            normal(32, 32),
        ),
        "whisper": Small(
            "Whisper",
            "ForConditionalGeneration",
            whisper,
            lambda: {"input_features": normal(20, 64)(), "decoder_input_ids": tokens(12)()},
        ),
    }


def smalls() -> Mapping[str, Small]:
    """Return name → small model."""
    parts = (_text(), _causal(), _pairs(), _vision(), _speech())
    return {name: small for part in parts for name, small in part.items()}


def zoo() -> Zoo:
    """Return name → entry."""
    return {name: Entry(small.build, small.batch) for name, small in smalls().items()}
