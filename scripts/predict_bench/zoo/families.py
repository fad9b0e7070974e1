"""One model, a small one, of each of timm's families, at the smallest images that it takes."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from predict_bench.zoo.entry import Entry, Zoo, normal

_FREE = """
    convmixer_768_32 test_convnext cpubone_nano csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny densenet121
    dla46x_c dpn48b edgenext_xx_small test_efficientnet efficientvim_m1 efficientvit_b0 fasternet_t0 fastvit_t8
    focalnet_tiny_srf ghostnet_050 hardcorenas_b hgnetv2_b0 sam2_hiera_tiny hrnet_w18_small iformer_t
    inception_next_atto lcnetv2_small lowformer_b0 test_mambaout poolformerv2_s12 mobilenetv3_small_050
    mobilenetv5_base nasnetalarge nextvit_small test_nfnet pnasnet5large pvt_v2_b0 rdnet_tiny regnetx_002
    repghostnet_050 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1
    skresnet18 starnet_s050 tiny_vit_5m_224 tresnet_m vgg11_bn ese_vovnet19b_slim_dw legacy_xception xception41p
"""
_SIZED = """
    beit_base_patch16_224 test_byobnet cait_xxs24_224 coat_tiny convit_tiny deit_tiny_patch16_224
    efficientformerv2_s0 efficientvit_m0 eva02_tiny_patch14_224 gcvit_xxtiny gemma4_vit_167m hiera_tiny_224
    levit_128s maxvit_pico_rw_256 gmlp_ti16_224 mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap
    nest_tiny pit_ti_224 qwen3_vit_88m repvit_m1 sequencer2d_s swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window16_256 swinv2_cr_tiny_224 tnt_s_legacy_patch16_224 twins_svt_small visformer_tiny test_vit
    vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224
    xcit_nano_12_p8_224
"""
_LARGER: Mapping[str, int] = {
    "halonet_h1": 256,
    "crossvit_tiny_240": 256,
    "deepseek_vit_412m": 224,
    "efficientformer_l1": 224,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
}
"""Models → pixels a side, where 64 are too few."""
_ASKS = {"halonet_h1", "deepseek_vit_412m", "efficientformer_l1"}


def _build(name: str, size: int, *, told: bool) -> nn.Module:
    timm: Any = import_module("timm")
    model: nn.Module = timm.create_model(name, **({"img_size": size} if told else {}))
    return model.train()


def zoo() -> Zoo:
    """Return name → entry; timm is imported when one is built."""
    found = {}
    for names, told in ((_FREE, False), (_SIZED, True)):
        for name in names.split():
            found[name] = _entry(name, 64, told=told)
    for name, size in _LARGER.items():
        found[name] = _entry(name, size, told=name in _ASKS)
    return found


def _entry(name: str, size: int, *, told: bool) -> Entry:
    return Entry(lambda: _build(name, size, told=told), normal(3, size, size))
