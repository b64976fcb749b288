"""Mixing of training images: a part of one image is pasted onto another, with its labels."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from utils.names import OUTSIDE

Kind = Literal["cutmix", "classmix"]
Domain = Literal["labelled", "unlabelled", "both"]


class Mixing:
    """Mixes the images of a micro-batch in pairs: image 2k with image 2k + 1, labelled and unlabelled ones apart.

    What is drawn is a function of the seed and the position of the image in the training stream. The teacher sees the
    mixed images, so what it says about them fits them.

    cutmix: a rectangle of the partner (French et al., BMVC 2020, section 3). classmix: all pixels of half of the
    partner's classes (Olsson et al., WACV 2021, section 3.1); the teacher decides the classes of an unlabelled image.

    Args:
        kind: ``'cutmix'`` or ``'classmix'``.
        probability: of an image to be mixed.
        domain: which images are mixed.
        seed: of all draws.
    """

    def __init__(self, kind: Kind, probability: float, domain: Domain, seed: int):
        self.kind, self.probability, self.domain, self.seed = kind, probability, domain, seed

    def __call__(
        self, images: Tensor, ids: Tensor, positions: Tensor, classes_of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The mixed images and labels of a micro-batch.

        Args:
            images: B 3 H W.
            ids: B H W uint8 (``losses.labels.Labels``).
            positions: B int64 on the CPU; negative for an unlabelled image.
            classes_of: the teacher's classes, b 3 H W -> b H W; called for unlabelled images with classmix only.
        """
        masks = torch.zeros_like(ids, dtype=torch.bool)
        partners = torch.arange(len(ids))
        for name, mine in (("labelled", positions >= 0), ("unlabelled", positions < 0)):
            rows = mine.nonzero()[:, 0]
            if self.domain not in (name, "both") or not len(rows):
                continue
            partners[rows] = rows.view(-1, 2).flip(1).flatten()
            classes = ids
            if self.kind == "classmix" and name == "unlabelled":
                classes = ids.clone()
                classes[rows] = classes_of(images[rows]).to(ids).where(ids[rows] != OUTSIDE, OUTSIDE)
            for row in rows.tolist():
                masks[row] = self._region(classes[partners[row]], int(positions[row]))
        partners = partners.to(images.device)
        return images[partners].where(masks[:, None], images), ids[partners].where(masks, ids)

    def _region(self, classes: Tensor, position: int) -> Tensor:
        """H W bool: the pixels that the image at this position takes from its partner, whose classes are H W."""
        domain, number = (0, position) if position >= 0 else (1, -1 - position)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(4 + domain, number)))
        mask = torch.zeros_like(classes, dtype=torch.bool)
        if rng.random() >= self.probability:
            return mask
        if self.kind == "classmix":
            there = [k for k in classes.unique().tolist() if k < OUTSIDE]
            chosen = rng.permutation(there)[: (len(there) + 1) // 2]
            return torch.isin(classes, torch.as_tensor(chosen, dtype=classes.dtype, device=classes.device))
        share, aspect = rng.uniform(0.1, 0.5), math.exp(rng.uniform(-math.log(2), math.log(2)))
        height, width = (
            min(side, round(side * math.sqrt(part)))
            for side, part in zip(classes.shape, (share / aspect, share * aspect), strict=True)
        )
        top, left = (rng.integers(side - size + 1) for side, size in zip(classes.shape, (height, width), strict=True))
        mask[top : top + height, left : left + width] = True
        return mask
