"""Other people's networks given our weights: their names for our tensors, and weights that make a comparison tell."""

import re

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def randomize(module: nn.Module) -> nn.Module:
    """Gives every tensor, norms and running statistics too, values no initialisation would: zeros hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            fan_in = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 25
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    return module


def rename(state: State, rules: list[tuple[str, str]]) -> State:
    """Rewrites each key by every regular expression in turn."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def mit_as_hugging_face(state: State) -> State:
    """Names of transformers' Segformer stages; keys and values are two matrices there, one of ours."""
    state = rename(
        state,
        [
            (r"^patch_embed(\d)\.proj", r"stages.\1.patch_embeddings.proj"),
            (r"^patch_embed(\d)\.norm", r"stages.\1.patch_embeddings.layer_norm"),
            (r"^block(\d)\.", r"stages.\1.blocks."),
            (r"^norm(\d)\.", r"stages.\1.layer_norm."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.attn\.proj", ".attention.o_proj"),
            (r"\.attn\.q", ".attention.q_proj"),
            (r"\.attn\.kv", ".attention.kv"),
            (r"\.attn\.sr", ".attention.sequence_reduction.sequence_reduction"),
            (r"\.attn\.norm", ".attention.sequence_reduction.layer_norm"),
            (r"^stages\.(\d)", lambda match: f"stages.{int(match[1]) - 1}"),
        ],
    )
    for key in [key for key in state if ".kv." in key]:
        keys, values = state.pop(key).chunk(2)
        state[key.replace(".kv.", ".k_proj.")], state[key.replace(".kv.", ".v_proj.")] = keys, values
    return state


def segformer_as_hugging_face(state: State) -> State:
    """Names of transformers' SegformerForSemanticSegmentation for a whole SegFormer of ours."""
    encoder = {key.removeprefix("backbone."): tensor for key, tensor in state.items() if key.startswith("backbone.")}
    head = rename(
        {key: tensor for key, tensor in state.items() if key.startswith("head.")},
        [
            (r"^head\.project\.stage(\d)", lambda m: f"decode_head.linear_projections.{int(m[1]) - 1}.proj"),
            (r"^head\.fuse\.0", "decode_head.linear_fuse"),
            (r"^head\.fuse\.1", "decode_head.batch_norm"),
            (r"^head\.classifier", "decode_head.classifier"),
        ],
    )
    linear = {key: tensor.flatten(1) if key.endswith("proj.weight") else tensor for key, tensor in head.items()}
    return {**{f"segformer.{key}": tensor for key, tensor in mit_as_hugging_face(encoder).items()}, **linear}


def deeplabv3_as_torchvision(state: State) -> State:
    """Names of torchvision's deeplabv3_resnet* for a DeepLabV3-ResNet of ours."""
    return rename(
        state,
        [
            (r"^backbone\.net\.", "backbone."),
            (r"^head\.aspp\.convs\.4\.project\.(\d)", lambda match: f"classifier.0.convs.4.{int(match[1]) + 1}"),
            (r"^head\.aspp\.", "classifier.0."),
            (r"^head\.block\.(\d)", lambda match: f"classifier.{int(match[1]) + 1}"),
            (r"^head\.classifier", "classifier.4"),
            (r"^aux_head\.block\.", "aux_classifier."),
            (r"^aux_head\.classifier", "aux_classifier.4"),
        ],
    )
