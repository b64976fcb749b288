"""The field's training step, re-created from its description with this project's own modules, to measure against."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.optim import build_optimizer, parameter_groups
from engine.teacher import Teacher
from losses.alignment import FeatureAlignment
from losses.hmkd import HMKD
from losses.labels import Labels
from models import SegModel
from models.heads.layers import resize
from models.heads.segformer import STAGES, SegFormerHead

TAP = "stage3"  # whose features are compared


def unscaled_attention(x: Tensor) -> Tensor:
    """softmax(X^T X) X over the positions of B C h w, with the N x N matrix held, as HMKD's release computes it."""
    tokens = x.flatten(2)
    return (tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1).transpose(1, 2)).view_as(x)


def concatenated(head: SegFormerHead, stages: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """SegFormer's head as it is released: all stages on the finest grid, concatenated, and one layer over them all."""
    maps = [resize(head.project[stage](stages[stage]), like=stages["stage1"]) for stage in STAGES]
    features = head.fuse(torch.cat(maps, dim=1))
    return head.classifier(head.dropout(features)), features


def as_published(network: SegModel) -> SegModel:
    """The same network, in place, whose head computes what it does in the release's way."""
    if isinstance(network.head, SegFormerHead):
        network.head.forward = partial(concatenated, network.head)
    return network


class PublishedStep:
    """One step of dual alignment in float32, NCHW, eager, one process.

    Images arrive as normalised float32 and are copied while the step waits. The teacher's logits are upsampled to the
    labels' size and copied; cross-entropy and KL read both networks' full-resolution logits. The feature term is the
    released form: self-attention on the CNN's map before it is resized, then projection, refinement, warp. SegFormer's
    head is ``concatenated``. Each loss is read out in every step, for the log.

    Args:
        student, teacher: on the device, not used elsewhere: their heads are changed.
        optimizer: settings of ``parameter_groups`` and ``build_optimizer``.
    """

    def __init__(self, student: SegModel, teacher: Teacher, optimizer: dict):
        self.student, self.teacher = as_published(student), teacher
        as_published(teacher.network)
        self.device = next(student.parameters()).device
        method = HMKD(student.spec, teacher.spec, anchor=None, feature_pairs=((TAP, TAP),))
        self.align: FeatureAlignment = method.alignments["feature"].to(self.device)
        self.context, self.align.context = self.align.context, None
        trained = torch.nn.ModuleList([student, self.align])
        names = ("lr", "head_lr_mult", "weight_decay", "decay_norm_bias")
        groups = parameter_groups(student.backbone, trained, **{name: optimizer[name] for name in names})
        for group in groups:
            group["lr"] *= 1e-3  # random networks: the steps must stay finite, their size costs nothing
        self.optimizer = build_optimizer(
            optimizer["type"], groups, momentum=optimizer["momentum"], betas=optimizer["betas"]
        )

    def __call__(self, images: Tensor, labels: Tensor, attention: bool = True) -> dict[str, float]:
        """The loss terms of B 3 H W float images and B H W int64 labels, both on the CPU, after the step.

        ``attention=False`` leaves the self-attention out: some CPUs' libraries are slow beyond reason at its products.
        """
        images, labels = images.to(self.device), labels.to(self.device)
        with torch.no_grad():
            teacher = self.teacher(images)
            teacher_logits = F.interpolate(teacher.logits, labels.shape[-2:], mode="bilinear").clone()
        student = self.student(images)
        logits = F.interpolate(student.logits, labels.shape[-2:], mode="bilinear")
        task = F.cross_entropy(logits, labels, ignore_index=255)
        kd = F.kl_div(logits.log_softmax(1), teacher_logits.softmax(1), reduction="none").sum(1).mean()
        maps = {"student": student.taps[TAP], "teacher": teacher.taps[TAP].clone()}
        if attention and self.context is not None:
            maps[self.context] = unscaled_attention(maps[self.context])
        feature, _ = self.align(maps["student"], maps["teacher"], Labels(labels.byte()))
        loss = task + kd + feature
        if student.aux is not None:
            aux = F.interpolate(student.aux, labels.shape[-2:], mode="bilinear")
            loss = loss + 0.4 * F.cross_entropy(aux, labels, ignore_index=255)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"task": task.item(), "kd": kd.item(), "feature": feature.item(), "loss": loss.item()}
