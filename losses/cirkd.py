"""CIRKD: each pixel's similarities to the pixels of other images, and to memories of pixels and regions."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from losses.alignment import LogitAlignment
from losses.base import INSIDE, METHODS, Method, class_ids, on_student_grid
from losses.checks import check_logits, check_pairs, check_weights
from losses.functional import full_precision, tile_elements, unit
from losses.labels import Labels, Pixels, pool_valid
from models.base import ModelSpec, SegOutput

PIXELS = 16  # of a class that enter the pixel memory from one image, at most


def relation_divergence(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    student_keys: Sequence[Tensor],
    teacher_keys: Sequence[Tensor],
    tau: float,
) -> Tensor:
    """Sum over images i, sets of keys j and rows a of KL(softmax(T_ia K_tj^T / tau) || softmax(S_ia K_sj^T / tau)).

    Only a few rows of similarities are held at a time, never those of an image. The teacher's side gets no gradient.

    Args:
        students, teachers: of each image n_i C_s and n_i C_t, rows of length 1.
        student_keys, teacher_keys: of each set m_j C_s and m_j C_t, the same; a set without keys adds 0.
        tau: temperature of the similarities, > 0.
    """
    return _RelationDivergence.apply(tau, teachers, teacher_keys, *students, *student_keys)


class _RelationDivergence(torch.autograd.Function):
    """``relation_divergence``, whose gradient is computed with the value.

    The gradient of one similarity is (softmax(S_ia K_sj^T / tau) - softmax(T_ia K_tj^T / tau)) / tau.
    """

    @staticmethod
    def forward(
        ctx, tau: float, teachers: Sequence[Tensor], teacher_keys: Sequence[Tensor], *tensors: Tensor
    ) -> Tensor:
        n, needed, sums = len(teachers), ctx.needs_input_grad[3:], [tensors[0].new_zeros(())]
        gradients = [torch.zeros_like(x) if need else None for x, need in zip(tensors, needed, strict=True)]
        images = list(zip(tensors[:n], teachers, gradients[:n], strict=True))
        for s_keys, t_keys, keys_gradient in zip(tensors[n:], teacher_keys, gradients[n:], strict=True):
            length = max(1, tile_elements(s_keys) // max(1, len(s_keys)))
            for student, teacher, gradient in images if len(s_keys) else ():
                for start in range(0, len(student), length):
                    rows = slice(start, start + length)
                    log_s, log_t = (
                        (x[rows] @ keys.T).div_(tau).log_softmax(1)
                        for x, keys in ((student, s_keys), (teacher, t_keys))
                    )
                    p_t = log_t.exp()
                    sums.append(torch.dot(p_t.flatten(), (log_t - log_s).flatten()))
                    slope = log_s.exp_().sub_(p_t).div_(tau)
                    if gradient is not None:
                        gradient[rows] += slope @ s_keys
                    if keys_gradient is not None:
                        keys_gradient += slope.T @ student[rows]
        ctx.save_for_backward(*gradients)
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(None if x is None else x * grad_output for x in ctx.saved_tensors)


def pool_factor(size: tuple[int, int], cells: int) -> int:
    """The smallest p for which the grid ``size``, pooled p x p, has at most ``cells`` (1 or more) cells."""
    p = 1
    while math.prod(-(-n // p) for n in size) > cells:
        p += 1
    return p


def unit_rows(x: Tensor, valid: Tensor) -> list[Tensor]:
    """B C h w, B h w bool -> for each image n_i C: the valid cells' vectors, of length 1."""
    return [unit(image.flatten(1).T[inside.flatten()]) for image, inside in zip(x, valid, strict=True)]


def gather_ranks(x: Tensor) -> Tensor:
    """``x`` of all ranks one after the other along the first dimension; ``x`` itself without a process group."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class ClassMemory(nn.Module):
    """A ring buffer of the newest unit vectors of each class.

    Args:
        num_classes, size, channels: K classes of at most ``size`` vectors of C channels.
        keys: number of vectors drawn at a time, over all classes: ``keys // K + 1`` of each.
    """

    def __init__(self, num_classes: int, size: int, channels: int, keys: int):
        super().__init__()
        self.draws = keys // num_classes + 1
        self.register_buffer("vectors", torch.zeros(num_classes, size, channels))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.int64))  # overwritten ones included

    @torch.no_grad()
    def write(self, vectors: Tensor, found: Tensor) -> None:
        """Replaces the oldest by the ``vectors`` (B K n C) of every rank that ``found`` (B K n bool) marks."""
        vectors, found = (gather_ranks(x.contiguous()).transpose(0, 1).flatten(1, 2) for x in (vectors, found))
        size, number = self.vectors.shape[1], found.cumsum(1)
        k, i = (found & (number > number[:, -1:] - size)).nonzero(as_tuple=True)  # no slot is written twice
        self.vectors[k, (self.written[k] + number[k, i] - 1) % size] = vectors[k, i].to(self.vectors)
        self.written += number[:, -1]

    def draw(self) -> Tensor:
        """m C: vectors of each class seen so far, the same number of each, with replacement."""
        K, size, C = self.vectors.shape
        filled = self.written.clamp(max=size)[:, None]
        slots = torch.randint(2**31, (K, self.draws), device=filled.device) % filled.clamp(min=1)
        drawn = self.vectors.gather(1, slots[..., None].expand(-1, -1, C))
        return drawn[self.written > 0].flatten(0, 1)


@METHODS.register("cirkd")
class CIRKD(Method):
    """Cross-image relational distillation: the student copies similarities between the teacher's features.

        L = L_task + kd * L_kd + batch * L_batch + pixel * L_pixel + region * L_region

    With S and T the student's and the teacher's feature vectors, each divided by its length:

    - L_batch = KL(softmax(T_i T_j^T / tau) || softmax(S_i S_j^T / tau)), mean over image i's cells and all pairs of
      images (i, j) of the batch;
    - L_pixel, L_region: the same, but the keys of both sides are drawn from a memory of the teacher's pixels, or of
      its regions (mean of a class in an image). S first passes conv-BN-ReLU-conv (1x1) to the teacher's width; nothing
      else is learnt. The memories hold K (pixel_queue + region_queue) C_t float32 and are saved in checkpoints;
    - L_kd: pixel-wise distillation of the logits, T^2 KL.

    With ``pixels='inside'``, the teacher's most probable class replaces a missing label in the memories.

    Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022: mini-batch
    pixel-to-pixel, memory-based pixel-to-pixel and pixel-to-region distillation. On one grid, without void and with
    the same keys each term is that of github.com/winycg/CIRKD (ratio 1, measured). Differences:

    - Only compared cells are in terms and memories (there L_kd and L_batch include void).
    - A class's pixel memory holds that class only. That code takes ``perm[:K]`` where ``idxs[perm[:K]]`` is meant, and
      so any pixels.
    - Memories are ring buffers, empty at first, drawn from class by class with replacement. There they hold random
      vectors at first, one draw of slots serves every class, and at the buffer's end newest vectors replace newest.
    - Ranks exchange each image's 16 pixels and mean of each class, not its whole map.
    - Only a few rows of similarities are held at a time. In L_batch, grids of more than ``batch_cells`` cells are
      averaged p x p, with the least p that is enough (there 4 x 4 from 256 x 256 on).

    L_batch compares the images that one process sees at once, so it depends on how a batch is split. The memories
    grow in training mode only: each micro-batch of all ranks is added before it is compared.

    Args:
        kd, batch, pixel, region: weights of the terms ``'cirkd_kd'``, ``'cirkd_batch'``, ..., 0 or more.
        pair: (teacher's tap, student's tap).
        temperature: T of L_kd.
        tau: temperature of the similarities.
        pixel_queue, region_queue: number of vectors of each class that the memories hold.
        pixel_keys, region_keys: number drawn for a batch, over all classes.
        batch_cells: the largest grid that is compared cell by cell within the batch.

    Raises:
        ValueError: if a tap is unknown, a value makes no sense, or ``kd`` is on, or a memory with ``pixels='inside'``,
            and the teacher gives no logits or other classes.
    """

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        kd: float = 1.0,
        batch: float = 1.0,
        pixel: float = 0.1,
        region: float = 0.1,
        pair: tuple[str, str] = ("head", "head"),
        temperature: float = 1.0,
        tau: float = 0.1,
        pixel_queue: int = 20000,
        region_queue: int = 2000,
        pixel_keys: int = 4096,
        region_keys: int = 1024,
        batch_cells: int = 8192,
        pixels: Pixels = "labelled",
    ):
        super().__init__(pixels)
        weights = {"kd": kd, "batch": batch, "pixel": pixel, "region": region}
        check_weights(**weights)
        check_pairs("pair", [pair], student, teacher)
        if temperature <= 0 or tau <= 0:
            raise ValueError(f"temperature is {temperature}, tau {tau}; expected both > 0")
        sizes = {"pixel_queue": pixel_queue, "region_queue": region_queue, "batch_cells": batch_cells}
        sizes |= {"pixel_keys": pixel_keys, "region_keys": region_keys}
        if min(sizes.values()) < 1:
            raise ValueError(f"{min(sizes, key=sizes.get)} is {min(sizes.values())}; expected 1 or more")
        if kd:
            check_logits(self, student, teacher, "set kd=0")
        elif pixels == "inside" and (pixel or region):
            check_logits(self, student, teacher, "set pixels='labelled'", INSIDE)
        K = student.num_classes
        self.weights = {f"cirkd_{name}": float(weight) for name, weight in weights.items() if weight}
        self.pair, self.num_classes, self.tau, self.batch_cells = pair, K, tau, batch_cells
        self.pairs = {"cirkd": pair}
        self.taps = student.taps[pair[1]], teacher.taps[pair[0]]
        self.align = LogitAlignment(K, student.taps["head"].stride, temperature)
        width = self.taps[1].channels
        self.memories = nn.ModuleDict()  # term -> its memory
        for term, size, keys in (("cirkd_pixel", pixel_queue, pixel_keys), ("cirkd_region", region_queue, region_keys)):
            if term in self.weights:
                self.memories[term] = ClassMemory(K, size, width, keys)
        if self.memories:
            self.project = nn.Sequential(
                nn.Conv2d(self.taps[0].channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 1, bias=False),
            )

    def forward(self, student: SegOutput, teacher: SegOutput, labels: Labels) -> dict[str, Tensor]:
        """Unweighted terms (see ``Method.forward``); in training mode the memories take the teacher's features."""
        terms = {}
        if "cirkd_kd" in self.weights:
            terms["cirkd_kd"] = self.align(student.logits, teacher.logits, labels, self.pixels)
        s, t = student.taps[self.pair[1]], teacher.taps[self.pair[0]]
        with full_precision(s):
            s, t, valid = on_student_grid(s, t, labels, self.taps, self.pixels)
            if "cirkd_batch" in self.weights:
                terms["cirkd_batch"] = self._across_the_batch(s, t, valid)
            if self.memories:
                if self.training:
                    self._remember(t, class_ids(labels.at(self.taps[0].stride), teacher.logits, self.pixels))
                S, T = unit_rows(self.project(s), valid), unit_rows(t, valid)
                for term, memory in self.memories.items():
                    keys = [memory.draw().to(t)]
                    terms[term] = relation_divergence(S, T, keys, keys, self.tau) / valid.sum().clamp(min=1)
        return terms

    def _across_the_batch(self, s: Tensor, t: Tensor, valid: Tensor) -> Tensor:
        p = pool_factor(valid.shape[-2:], self.batch_cells)
        valid = pool_valid(valid, p)
        # Cells that are not valid are 0, and lengths do not matter: this is the direction of the valid cells' mean.
        S, T = (unit_rows(F.avg_pool2d(x, p, ceil_mode=True), valid) for x in (s, t))
        return relation_divergence(S, T, S, T, self.tau) / (valid.sum() * valid.flatten(1).any(1).sum()).clamp(min=1)

    def _remember(self, t: Tensor, cells: Tensor) -> None:
        classes = torch.arange(self.num_classes, device=cells.device)
        members = cells.flatten(1)[:, None] == classes[:, None]  # B K N
        rows = unit(t.flatten(2).transpose(1, 2))  # B N C
        if "cirkd_pixel" in self.memories:
            noise = torch.rand_like(rows[:, None, :, 0])
            score, chosen = noise.where(members, -1).topk(min(PIXELS, members.shape[-1]))
            images = torch.arange(len(rows), device=rows.device)[:, None, None]
            self.memories["cirkd_pixel"].write(rows[images, chosen], score >= 0)
        if "cirkd_region" in self.memories:
            regions = unit(members.to(rows.dtype) @ rows)  # a sum has the direction of the mean
            self.memories["cirkd_region"].write(regions[:, :, None], members.any(-1, keepdim=True))

    def counts(self, labels: Labels) -> dict[str, Tensor]:
        """Compared cells: of the logits' grid, of the grid compared within the batch, and of the student's tap."""
        stride = self.taps[0].stride
        cells, p = labels.at(stride), pool_factor(labels.size(stride), self.batch_cells)
        counts = {
            "cirkd_kd": self.align.count(labels, self.pixels),
            "cirkd_batch": pool_valid(cells.mask(self.pixels), p).sum().float(),
            "cirkd_pixel": cells.count(self.pixels),
            "cirkd_region": cells.count(self.pixels),
        }
        return {term: counts[term] for term in self.weights}
