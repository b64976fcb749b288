"""Tiny networks of Hugging Face with random weights, by family, and folders that hold them."""

from pathlib import Path

import pytest
import torch

NAMES = ("sky", "building", "pole", "road", "tree")


def _configs():
    """Each family's model class and config; K = 5 classes."""
    import transformers as hf

    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    swin = hf.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages)
    convnext = hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=stages)
    vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32} | labels
    upernet = {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 8} | labels
    decoder = {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "encoder_layers": 1, "decoder_layers": 2}
    queries = {"num_attention_heads": 2, "num_queries": 6, "backbone_config": swin} | labels
    detr = hf.DetrConfig(
        d_model=16, decoder_layers=1, decoder_ffn_dim=16, decoder_attention_heads=2, num_queries=6, encoder_layers=1,
        encoder_attention_heads=2, encoder_ffn_dim=16,
    )  # fmt: skip
    return {
        "segformer": (
            hf.SegformerForSemanticSegmentation,
            lambda: hf.SegformerConfig(
                hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16,
                **labels,
            ),
        ),
        "upernet-swin": (
            hf.UperNetForSemanticSegmentation,
            lambda: hf.UperNetConfig(backbone_config=swin, auxiliary_in_channels=32, **upernet),
        ),
        "upernet-convnext": (
            hf.UperNetForSemanticSegmentation,
            lambda: hf.UperNetConfig(backbone_config=convnext, auxiliary_in_channels=24, **upernet),
        ),
        "dpt": (
            hf.DPTForSemanticSegmentation,
            lambda: hf.DPTConfig(
                image_size=64, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, **vit
            ),
        ),
        "beit": (
            hf.BeitForSemanticSegmentation,
            lambda: hf.BeitConfig(image_size=64, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], **vit),
        ),
        "data2vec-vision": (
            hf.Data2VecVisionForSemanticSegmentation,
            lambda: hf.Data2VecVisionConfig(image_size=64, out_indices=[0, 1, 2, 3], pool_scales=[1, 2], **vit),
        ),
        "mobilevit": (
            hf.MobileViTForSemanticSegmentation,
            lambda: hf.MobileViTConfig(
                hidden_sizes=[8] * 3, neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16], num_attention_heads=2,
                aspp_out_channels=8, image_size=64, **labels,
            ),
        ),
        "mobilenet_v2": (
            hf.MobileNetV2ForSemanticSegmentation,
            lambda: hf.MobileNetV2Config(depth_multiplier=0.35, **labels),
        ),
        "mask2former": (
            hf.Mask2FormerForUniversalSegmentation,
            lambda: hf.Mask2FormerConfig(feature_size=32, mask_feature_size=32, hidden_dim=32, **decoder, **queries),
        ),
        "maskformer": (
            hf.MaskFormerForInstanceSegmentation,
            lambda: hf.MaskFormerConfig(
                backbone_config=swin, fpn_feature_size=32, mask_feature_size=32, decoder_config=detr, **labels
            ),
        ),
        "oneformer": (
            hf.OneFormerForUniversalSegmentation,
            lambda: hf.OneFormerConfig(
                hidden_dim=32, mask_dim=32, conv_dim=32, query_dec_layers=1, text_encoder_width=32,
                text_encoder_num_layers=1, text_encoder_vocab_size=60, is_training=False, **decoder, **queries,
            ),
        ),
        "eomt": (
            hf.EomtForUniversalSegmentation,
            lambda: hf.EomtConfig(
                hidden_size=16, num_hidden_layers=5, num_attention_heads=2, image_size=64, num_blocks=1, num_queries=6,
                mlp_ratio=2, num_register_tokens=2, **labels,
            ),
        ),
    }  # fmt: skip


SEMANTIC = (
    *("segformer", "upernet-swin", "upernet-convnext", "dpt", "beit", "data2vec-vision", "mobilevit", "mobilenet_v2"),
)
UNIVERSAL = ("mask2former", "maskformer", "oneformer", "eomt")


def processor_of(family):
    """The image processor of the family's published folders (UperNet: SegFormer's)."""
    import transformers as hf

    classes = {
        "dpt": hf.DPTImageProcessor, "beit": hf.BeitImageProcessor, "data2vec-vision": hf.BeitImageProcessor,
        "mobilevit": hf.MobileViTImageProcessor, "mobilenet_v2": hf.MobileNetV2ImageProcessor,
        "mask2former": hf.Mask2FormerImageProcessor, "maskformer": hf.MaskFormerImageProcessor,
        "oneformer": hf.OneFormerImageProcessor, "eomt": hf.EomtImageProcessor,
    }  # fmt: skip
    return classes.get(family, hf.SegformerImageProcessor)()


def save_network(family: str, folder: Path):
    """Writes the folder of a network with random weights; returns the network, in evaluation mode."""
    pytest.importorskip("transformers", reason='needs pip install ".[transformers]"')
    if family in ("mask2former", "maskformer", "oneformer", "eomt"):
        pytest.importorskip("scipy", reason='needs pip install ".[transformers]"')
    build, config = _configs()[family]
    torch.manual_seed(0)
    model = build(config()).eval()
    for layer in model.modules():  # the library's initial weights are so small that some networks give zeros
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    if family in SEMANTIC:
        model.train()(pixel_values=torch.randn(4, 3, 64, 64))  # for the statistics of its batch norms
        model.eval()
    model.save_pretrained(folder)
    processor_of(family).save_pretrained(folder)
    if family == "oneformer":
        save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer whose words are single letters."""
    import json

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
