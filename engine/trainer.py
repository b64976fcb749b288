"""The mechanics of a training step: device, precision, processes, accumulation. What is learned is not known here."""

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.crash import NonFiniteError, non_finite_error
from engine.optim import (
    build_optimizer,
    gradient_norms,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
    weight_factor,
)
from engine.sharding import compile_in_place, shard
from engine.teacher_cache import TeacherCache
from losses.labels import Labels
from models.inference import is_sharded
from utils.distributed import World, all_reduce_max, all_reduce_sum

# float16's loss scale halves with every gradient that overflows. What overflows even so small is not finite by itself.
SMALLEST_LOSS_SCALE = 1e-4


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights of convolutions and linear layers once and for all, as autocast does anew in every forward."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)


class PendingStep(NamedTuple):
    """A step that is over, or is on its way through the GPU."""

    step: int
    batches: Sequence[dict]
    weights: dict[str, float]  # of the terms
    terms: dict[str, float]  # this rank's part of them
    outcome: Callable[[], list[float]]  # 1 if the gradient was not finite, or else 0; the loss scale


def async_read(tensor: Tensor) -> Callable[[], list[float]]:
    """Starts to copy a tensor's present values to the host; what is returned waits for this copy alone."""
    if tensor.device.type != "cuda":
        values = tensor.tolist()
        return lambda: values
    host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return read


class Trainer:
    """Takes optimizer steps on a distiller: the same steps however the global batch is divided.

    Args:
        distiller: all that is trained (``losses.Distiller``); moved to the device, its norms synchronised over GPUs.
        teacher: frozen, in eval mode, or None; moved to the device.
        world: this process among its peers.
        optimizer: settings of ``parameter_groups`` and ``build_optimizer``.
        schedule: arguments of ``learning_rate_factor`` beside the step.
        autocast_dtype: bfloat16 or float16 for mixed precision, None for none.
        channels_last: memory layout of the networks.
        grad_clip: maximal gradient norm, or None.
        curriculum: by loss term, arguments of ``weight_factor`` beside the step.
        seed: of dropout and drop path.
        teacher_cache: where the teacher's outputs are kept (``engine.teacher_cache``), or None to run it every time.
        shard_teacher: shares its weights out over the ranks (``engine.sharding``).
        compile_blocks: ``torch.compile`` of both networks (``engine.sharding``); names and weights stay as they are.
    """

    def __init__(
        self,
        distiller: nn.Module,
        teacher: nn.Module | None,
        world: World,
        *,
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        autocast_dtype: torch.dtype | None,
        channels_last: bool,
        grad_clip: float | None,
        curriculum: Mapping[str, Mapping[str, Any]],
        seed: int,
        teacher_cache: TeacherCache | None = None,
        shard_teacher: bool = False,
        compile_blocks: bool = False,
    ):
        self.world, self.schedule, self.grad_clip, self.seed = world, schedule, grad_clip, seed
        self.autocast_dtype, self.curriculum, self.teacher_cache = autocast_dtype, curriculum, teacher_cache
        if unknown := curriculum.keys() - distiller.weights.keys():
            terms = ", ".join(distiller.weights)
            raise ValueError(f"curriculum: there is no loss term {sorted(unknown)[0]!r}; choose from {terms}")
        if world.size > 1 and world.device.type == "cuda":
            # timm's conversion: PyTorch's would drop the activation that timm fuses into some of its norms.
            distiller = convert_sync_batchnorm(distiller)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.distiller = distiller.to(world.device, memory_format=layout)
        self.teacher = teacher
        if teacher is not None and autocast_dtype is not None:
            cast_weights(teacher, autocast_dtype)
        if shard_teacher:
            shard(teacher, world, layout)
        elif teacher is not None:
            teacher.to(world.device, memory_format=layout)
        if compile_blocks:
            for network in self.networks.values():
                compile_in_place(network)
        self.wrapped = self.distiller
        if world.size > 1:
            # No broadcast of buffers in a step: memory banks are filled alike on all ranks, and of the running
            # statistics only rank 0's are ever read (evaluation hands them out).
            names = inspect.signature(DistributedDataParallel).parameters  # PyTorch 2.13 renamed the option
            option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
            self.wrapped = DistributedDataParallel(self.distiller, gradient_as_bucket_view=True, **{option: False})

        names = ("lr", "head_lr_mult", "weight_decay", "decay_norm_bias")
        groups = parameter_groups(self.student.backbone, self.distiller, **{name: optimizer[name] for name in names})
        self.optimizer = build_optimizer(
            optimizer["type"], groups, momentum=optimizer["momentum"], betas=optimizer["betas"]
        )
        # The scaler skips a step whose gradient is not finite, on the device and so without waiting for it. Beside
        # float16 it does nothing else: the scale is 1.
        self.scaled = autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(
            world.device.type, **({} if self.scaled else {"init_scale": 1.0, "growth_interval": 2**31 - 1})
        )
        self.step = 0  # optimizer steps done
        self.skipped = torch.zeros((), dtype=torch.int64, device=world.device)  # of them, by the scaler
        self.taken: PendingStep | None = None  # the last of them, while its gradient is not known to be finite

    @property
    def student(self) -> nn.Module:
        return self.distiller.student

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by role, the student last."""
        return {**({"teacher": self.teacher} if self.teacher is not None else {}), "student": self.student}

    @property
    def learning_rate(self) -> float:
        """Of the backbone, in the step just taken."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the total, in the step to come."""
        factors = {term: weight_factor(self.step, **schedule) for term, schedule in self.curriculum.items()}
        return {term: weight * factors.get(term, 1.0) for term, weight in self.distiller.weights.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def forward(self, images: Tensor, labels: Labels, positions: Tensor | None = None) -> dict[str, Tensor]:
        """The loss terms, each a mean over this micro-batch; the teacher only looks on."""
        with self.autocast():
            return self.wrapped(images, labels, self.knowledge(images, positions))

    @torch.no_grad()
    def knowledge(self, images: Tensor, positions: Tensor | None) -> Any:
        """The teacher's output (None without a teacher).

        With a cache it is always what the cache gives: whether a sample was there before changes nothing learned.
        """
        if self.teacher_cache is None:
            return self.teacher(images) if self.teacher is not None else None
        known = self.teacher_cache.recall(positions)
        missing = known is None
        if is_sharded(self.teacher):  # it runs on all ranks or on none
            missing = all_reduce_max(missing, self.world)
        if missing:
            self.teacher_cache.store(positions, self.teacher(images))
            known = self.teacher_cache.recall(positions)
        return known

    def train_step(self, batches: Sequence[dict], measure_gradients: bool = False) -> tuple[dict[str, float], dict]:
        """One optimizer step over this rank's micro-batches.

        A term is a mean over its elements, weighted here by its share in the elements of the global batch (all ranks
        and micro-batches): the step does not depend on how the global batch is divided.

        Returns:
            The terms and their weighted sum ('loss') over the global batch; and the norm of each weighted term's
            gradient on the student, if asked for (of rank 0's first micro-batch).

        Raises:
            NonFiniteError: on every rank and before any weight changes, if a term or its gradient is not finite on one
                of them. On a GPU a gradient's comes from the next call, or from ``check``; the weights wait. In float16
                a gradient that overflows is no error as long as a smaller loss scale can mend it.
        """
        self.check()
        device, weights, last = self.world.device, self.weights, len(batches) - 1
        images = [batch["image"].to(device, non_blocking=True) for batch in batches]
        labels = [Labels(batch["label"].to(device, non_blocking=True)) for batch in batches]
        counts = torch.stack([torch.stack([count[k] for k in weights]) for count in map(self.distiller.counts, labels)])
        everywhere = all_reduce_sum(counts.sum(0))
        shares = counts / everywhere.where(everywhere > 0, 1)  # a term over nothing but void is 0 already
        factors = shares * torch.tensor(list(weights.values()), device=device)

        sums, norms = torch.zeros(len(weights), device=device), {}
        for i in range(len(batches)):
            self.seed_micro_batch(self.step, i, len(batches))
            with contextlib.nullcontext() if i == last else self.no_sync():
                terms = self.forward(images[i], labels[i], batches[i].get("position"))
                if measure_gradients and i == 0:
                    norms = gradient_norms(terms, weights, self.student, self.scaler.get_scale())
                values = torch.stack([terms[k] for k in weights])
                sums += shares[i] * values.detach()
                if i == last:  # on their way before the backward pass is queued: reading them does not wait for it
                    read_local = async_read(sums)
                    read_totals = async_read(all_reduce_sum(sums))
                # DDP averages gradients over the ranks; the shares already sum to one over them.
                self.scaler.scale((factors[i] * values).sum() * self.world.size).backward()
        local = dict(zip(weights, read_local(), strict=True))
        totals = dict(zip(weights, read_totals(), strict=True))
        if not all(map(math.isfinite, totals.values())):
            raise self.non_finite(self.step, batches, weights, local, self.scaler.get_scale())

        set_learning_rate(self.optimizer, learning_rate_factor(self.step, **self.schedule))
        self.scaler.unscale_(self.optimizer)
        gradients = [each.grad for each in self.distiller.parameters() if each.grad is not None]
        # The largest of all, since a sum of squares may overflow though each is finite.
        bad = ~nn.utils.get_total_norm(gradients, math.inf).isfinite()
        scale = self.scaler.scale(torch.ones((), device=device))
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.distiller.parameters(), self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += bad
        hopeless = bad & (scale < SMALLEST_LOSS_SCALE) if self.scaled else bad
        self.taken = PendingStep(self.step, batches, weights, local, async_read(torch.stack([hopeless, scale])))
        self.step += 1
        if device.type != "cuda":
            self.check()
        return {"loss": sum(weights[k] * totals[k] for k in weights), **totals}, norms

    def check(self) -> None:
        """Makes sure that the gradient of the last step was finite; waits for that step. Every rank must call it.

        Raises:
            NonFiniteError: as ``train_step``.
        """
        taken, self.taken = self.taken, None
        if taken is not None:
            hopeless, scale = taken.outcome()
            if hopeless:
                raise self.non_finite(*taken[:-1], scale)

    def non_finite(
        self, step: int, batches: Sequence[dict], weights: dict[str, float], terms: dict[str, float], scale: float
    ) -> NonFiniteError:
        """Computes a step once more, term by term, to find what in it is not finite, and where."""
        micro_batches, device = [], self.world.device
        for i, batch in enumerate(batches):
            self.seed_micro_batch(step, i, len(batches))
            with self.no_sync():
                labels = Labels(batch["label"].to(device))
                found = self.forward(batch["image"].to(device), labels, batch.get("position"))
                norms = gradient_norms(found, weights, self.distiller, scale)
            micro_batches.append({**batch, "terms": {k: found[k].item() for k in weights}, "gradient_norms": norms})
        method = self.distiller.method
        facts = {
            "step": step,
            "rank": self.world.rank,
            "precision": str(self.autocast_dtype or torch.float32).removeprefix("torch."),
            "loss_scale": scale,
            "weights": weights,
            "terms": terms,
            "student": self.student.state_dict(),
            "method": method.state_dict() if method is not None else {},
        }
        return non_finite_error(facts, micro_batches)

    def seed_micro_batch(self, step: int, i: int, accumulate: int) -> None:
        """Dropout and drop path follow from the micro-batch's number in the run, on whichever rank it is."""
        torch.manual_seed(self.seed * 1_000_003 + (step * accumulate + i) * self.world.size + self.world.rank)

    def no_sync(self) -> contextlib.AbstractContextManager:
        """Inside, gradients stay on their rank."""
        return contextlib.nullcontext() if self.world.size == 1 else self.wrapped.no_sync()

    def scaling(self) -> dict[str, float]:
        """In float16, the loss scale and the number of steps skipped so far because their gradient overflowed."""
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": int(self.skipped)} if self.scaled else {}

    def state(self) -> dict:
        """All that steps go on from; the teacher is not part of it. With several ranks, ``check`` on each comes first.

        Raises:
            NonFiniteError: as ``check``.
        """
        self.check()
        method = self.distiller.method
        return {
            "student": self.student.state_dict(),
            "method": method.state_dict() if method is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_steps": int(self.skipped),
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state`` gave."""
        self.student.load_state_dict(state["student"])
        if self.distiller.method is not None:
            self.distiller.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where it was saved when only float16 had a scaler
            self.scaler.load_state_dict(state["scaler"])
        self.skipped.fill_(state.get("skipped_steps", 0))
        self.step = state["step"]
