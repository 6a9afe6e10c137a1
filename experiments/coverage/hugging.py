"""Vision models of the transformers library, built small from their configurations: no weights are fetched."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_IMAGE = {"image_size": 64, "patch_size": 16}
# Class of the model, class of the configuration, what to set in it.
SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _VIT | _IMAGE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _VIT | _IMAGE),
    "beit": ("BeitForImageClassification", "BeitConfig", _VIT | _IMAGE),
    "data2vec": ("Data2VecVisionForImageClassification", "Data2VecVisionConfig", _VIT | _IMAGE),
    "vit_msn": ("ViTMSNForImageClassification", "ViTMSNConfig", _VIT | _IMAGE),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", _VIT | _IMAGE | {"mlp_ratio": 2}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", _VIT | _IMAGE),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", _VIT | _IMAGE),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "swinv2": (
        "Swinv2ForImageClassification",
        "Swinv2Config",
        {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2},
    ),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32, 40, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
        },
    ),
    "poolformer": (
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]},
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [48, 64, 80],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
            "num_attention_heads": 4,
        },
    ),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35}),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2]},
    ),
    "regnet": (
        "RegNetForImageClassification",
        "RegNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "groups_width": 8},
    ),
    "pvt_v2": (
        "PvtV2ForImageClassification",
        "PvtV2Config",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 40, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
        },
    ),
    "levit": (
        "LevitForImageClassification",
        "LevitConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "depths": [1, 1, 1], "num_attention_heads": [2, 3, 4]},
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        "GLPNConfig",
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16},
    ),
    "dpt": (
        "DPTForDepthEstimation",
        "DPTConfig",
        _VIT
        | _IMAGE
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
        },
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        "SwiftFormerConfig",
        {"depths": [1, 1, 2, 1], "embed_dims": [24, 32, 48, 64]},
    ),
    "hgnet_v2": ("HGNetV2ForImageClassification", "HGNetV2Config", {}),
}


class OnlyTensors(nn.Module):
    """Calls a model with pixels ``(N, 3, H, W)`` and returns the tensors of its output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        out = self.inner(pixel_values=pixels)
        return tuple(value for value in out.values() if isinstance(value, Tensor))


def small(name: str) -> nn.Module:
    """The model called ``name`` in ``SMALL``, with random weights."""
    import transformers

    model, config, options = SMALL[name]
    return OnlyTensors(getattr(transformers, model)(getattr(transformers, config)(**options)))
