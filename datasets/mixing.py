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
        mixed, labels = images.clone(), ids.clone()
        for name, mine in (("labelled", positions >= 0), ("unlabelled", positions < 0)):
            rows = mine.nonzero()[:, 0].tolist()
            if self.domain not in (name, "both") or not rows:
                continue
            classes = ids[rows]
            if self.kind == "classmix" and name == "unlabelled":
                classes = classes_of(images[rows]).to(ids).where(classes != OUTSIDE, OUTSIDE)
            for i, row in enumerate(rows):
                partner = rows[i ^ 1]
                region = self._region(classes[i ^ 1], int(positions[row]))
                for new, old in ((mixed, images), (labels, ids)):
                    new[row] = old[partner].where(region, old[row])
        return mixed, labels

    def _region(self, classes: Tensor, position: int) -> Tensor:
        """What the image at this position takes from its partner, whose classes are H W -> H W bool."""
        domain, number = (0, position) if position >= 0 else (1, -1 - position)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(4 + domain, number)))
        region = torch.zeros_like(classes, dtype=torch.bool)
        if rng.random() >= self.probability:
            return region
        if self.kind == "classmix":
            there = [k for k in classes.unique().tolist() if k < OUTSIDE]
            chosen = rng.permutation(there)[: (len(there) + 1) // 2]
            return torch.isin(classes, torch.as_tensor(chosen, dtype=classes.dtype, device=classes.device))
        share, aspect = rng.uniform(0.1, 0.5), math.exp(rng.uniform(-math.log(2), math.log(2)))
        sizes = (math.sqrt(share / aspect), math.sqrt(share * aspect))
        height, width = (round(min(1.0, size) * side) for side, size in zip(classes.shape, sizes, strict=True))
        top, left = int(rng.integers(len(classes) - height + 1)), int(rng.integers(classes.shape[1] - width + 1))
        region[top : top + height, left : left + width] = True
        return region
