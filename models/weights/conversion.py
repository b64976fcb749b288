"""How a layout's tensors become ours: rules that rename keys, and functions that join, reorder or reshape tensors."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.base import Normalization

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match], str]]


class Layout(NamedTuple):
    """How one family of files names its tensors."""

    name: str
    holds: str  # 'all' (a whole network) or 'backbone'
    markers: frozenset[str]  # a file with all of these keys has this layout; the first match in ``LAYOUTS`` counts
    expects: str = ""  # the arguments with which ``build_model`` builds these networks, for errors
    rules: tuple[Rule, ...] = ()  # regular expressions and replacements, each applied to every key, in order
    finish: Callable[[State], State] = dict  # renamed tensors -> ours, where more than names differs
    skip: tuple[str, ...] = ()  # prefixes, in the file, of tensors that our networks do not have
    normalization: Normalization | None = None  # of the images they were trained on, where it is the same for all
    output_stride: int | None = None  # of these networks, where it is the same for all; no tensor shows it

    def convert(self, state: State) -> State:
        """The tensors of a file under our names."""
        return self.finish({rename(key, self.rules): tensor for key, tensor in state.items()})


def rename(key: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def next_stage(template: str) -> Callable[[re.Match], str]:
    """A replacement with the number of the pattern's first group plus 1: stages count from 0 there, from 1 here."""
    return lambda match: template.format(int(match[1]) + 1)


def join(state: State, parts: tuple[str, ...], whole: str) -> State:
    """Concatenates tensors whose names differ in one component (``parts``) to one tensor (``whole``)."""
    joined = dict(state)
    for key in [key for key in state if f".{parts[0]}." in key]:
        names = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        shapes = {joined[name].shape if name in joined else None for name in names}
        if len(shapes) == 1 and joined[key].ndim:  # else they stay, and an error names them as unknown
            joined[key.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([joined.pop(name) for name in names])
    return joined


def _as_shape(state: State, pattern: str, ndim: int) -> State:
    """Weights of linear layers as those of 1x1 convolutions (``ndim`` 4), or the reverse (2)."""

    def reshape(tensor: Tensor) -> Tensor:
        if ndim == 4 and tensor.ndim == 2:
            return tensor[:, :, None, None]
        return tensor.flatten(1) if ndim == 2 and tensor.shape[2:] == (1, 1) else tensor

    return {key: reshape(tensor) if re.search(pattern, key) else tensor for key, tensor in state.items()}


def _reorder(state: State, key: str, order: tuple[int, ...]) -> State:
    """Splits the input channels of a convolution into equal blocks and reorders the blocks."""
    if key not in state or state[key].ndim != 4 or state[key].shape[1] % len(order):
        return state
    blocks = state[key].chunk(len(order), dim=1)
    return {**state, key: torch.cat([blocks[i] for i in order], dim=1)}


def linear_projections(state: State) -> State:
    return _as_shape(state, r"^head\.project\..*weight$", 4)


def fold_fuse_bias(state: State) -> State:
    """Subtracts the bias before a BatchNorm from its running mean, which computes the same without a bias."""
    state = linear_projections(state)
    bias, mean = state.get("head.fuse.0.bias"), state.pop("head.fuse.1.running_mean", None)
    if bias is not None and mean is not None and bias.shape == mean.shape:
        state["head.fuse.1.running_mean"] = mean.float() - state.pop("head.fuse.0.bias").float()
    return state


def hugging_face(state: State) -> State:
    return linear_projections(join(state, ("k", "v"), "kv"))


def mmseg_mit(state: State) -> State:
    """There ``in_proj`` is q, k and v in one, and the linear layers of the feed-forward are 1x1 convolutions."""
    split = {}
    for key, tensor in state.items():
        found = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", key)
        if found and tensor.ndim and tensor.shape[0] % 3 == 0:
            third = tensor.shape[0] // 3
            split[f"{found[1]}q.{found[2]}"], split[f"{found[1]}kv.{found[2]}"] = tensor.split([third, 2 * third])
        else:
            split[key] = tensor
    return _as_shape(split, r"\.mlp\.fc[12]\.weight$", 2)


def mmseg_segformer(state: State) -> State:
    """There the stages are concatenated from first to last, here from last to first."""
    return _reorder(mmseg_mit(state), "head.fuse.0.weight", (3, 2, 1, 0))


def mmseg_deeplabv3(state: State) -> State:
    """There the mean feature of the image comes first, here last."""
    return _reorder(state, "head.aspp.project.0.weight", (1, 2, 3, 4, 0))
