"""One optimizer step: device, precision, processes and accumulation. The losses are the distiller's."""

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datasets.mixing import Mixing
from engine.crash import NonFiniteError, non_finite_error
from engine.optim import (
    build_optimizer,
    gradient_norms,
    learning_rate_factor,
    parameter_groups,
    restore_optimizer,
    set_learning_rate,
    update_average,
    weight_factor,
)
from engine.sharding import compile_in_place
from engine.teacher import Teacher
from losses.labels import Labels
from models.base import SegOutput
from models.inference import resize
from models.placement import place
from utils.distributed import World, all_reduce_sum, broadcast_buffers

# In float16 the loss scale is halved whenever a gradient overflows. A gradient that overflows even below this scale is
# not finite for another reason.
SMALLEST_LOSS_SCALE = 1e-4


class PendingStep(NamedTuple):
    """The last step, whose outcome has not been read yet; a GPU may still be computing it."""

    step: int
    batches: Sequence[dict]
    weights: dict[str, float]  # of the terms
    terms: dict[str, float]  # this rank's part of them
    outcome: Callable[[], list[float]]  # 1 if the gradient was not finite, else 0; the loss scale


def async_read(tensor: Tensor) -> Callable[[], list[float]]:
    """Starts a copy of a tensor to the host; the function returned waits for this copy only and returns the values."""
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
    """Takes optimizer steps on a distiller. They do not depend on how the global batch is divided.

    Args:
        distiller: all that is trained (``losses.Distiller``); moved to the device, with SyncBatchNorm on several GPUs.
        teacher: on the device (``Teacher.prepare``), or None.
        world: this process and its peers.
        optimizer: settings of ``parameter_groups`` and ``build_optimizer``.
        schedule: arguments of ``learning_rate_factor`` beside the step.
        autocast_dtype: bfloat16 or float16 for mixed precision, None for none.
        channels_last: memory layout of the student.
        grad_clip: maximal gradient norm, or None.
        curriculum: by loss term, arguments of ``weight_factor`` beside the step.
        seed: of dropout and drop path.
        mixing: of the training images, or None.
        compile_blocks: ``torch.compile`` of the student's blocks (``engine.sharding``); parameters keep their names.
        ema: largest decay of the average of the student's weights (``engine.optim.update_average``), or None.

    Attributes:
        ema: the student with averaged weights, in evaluation mode and the same on all ranks; None without ``ema``.
    """

    def __init__(
        self,
        distiller: nn.Module,
        teacher: Teacher | None,
        world: World,
        *,
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        autocast_dtype: torch.dtype | None,
        channels_last: bool,
        grad_clip: float | None,
        curriculum: Mapping[str, Mapping[str, Any]],
        seed: int,
        mixing: Mixing | None = None,
        compile_blocks: bool = False,
        ema: float | None = None,
    ):
        self.world, self.schedule, self.grad_clip, self.seed = world, schedule, grad_clip, seed
        self.autocast_dtype, self.curriculum, self.teacher, self.mixing = autocast_dtype, curriculum, teacher, mixing
        if unknown := curriculum.keys() - distiller.weights.keys():
            terms = ", ".join(distiller.weights)
            raise ValueError(f"curriculum: there is no loss term {sorted(unknown)[0]!r}; choose from {terms}")
        if world.size > 1 and world.device.type == "cuda":
            # timm's conversion: PyTorch's drops the activation that timm fuses into some of its norms.
            distiller = convert_sync_batchnorm(distiller)
        self.distiller = place(distiller, world.device, channels_last)
        self.ema_decay = ema
        self.ema = None if ema is None else copy.deepcopy(self.student).requires_grad_(False).eval()
        if compile_blocks:
            compile_in_place(self.student)
        self.wrapped = self.distiller
        if world.size > 1:
            # Buffers are not broadcast in a step: memory banks are the same on all ranks, and only rank 0's running
            # statistics are used (``Run.evaluate`` broadcasts them).
            names = inspect.signature(DistributedDataParallel).parameters  # PyTorch 2.13 renamed the option
            option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
            self.wrapped = DistributedDataParallel(self.distiller, gradient_as_bucket_view=True, **{option: False})

        self.optimizer = build_optimizer(
            optimizer["type"], self.groups(optimizer), momentum=optimizer["momentum"], betas=optimizer["betas"]
        )
        # The scaler skips a step whose gradient is not finite. It decides on the device, so nothing waits for the GPU.
        # Without float16 this is all it does: its scale is 1.
        self.scaled = autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(
            world.device.type, **({} if self.scaled else {"init_scale": 1.0, "growth_interval": 2**31 - 1})
        )
        self.step = 0  # optimizer steps done
        self.skipped = torch.zeros((), dtype=torch.int64, device=world.device)  # how many of them the scaler skipped
        self.pending: PendingStep | None = None  # the last of them, until ``check`` has read its outcome

    @property
    def student(self) -> nn.Module:
        return self.distiller.student

    @property
    def learning_rate(self) -> float:
        """The backbone's, in the last step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in the total, in the next step."""
        factors = {term: weight_factor(self.step, **schedule) for term, schedule in self.curriculum.items()}
        return {term: weight * factors.get(term, 1.0) for term, weight in self.distiller.weights.items()}

    def groups(self, optimizer: Mapping[str, Any]) -> list[dict]:
        """The trained parameters in groups, by these settings of the optimizer."""
        names = ("lr", "head_lr_mult", "weight_decay", "decay_norm_bias")
        return parameter_groups(self.student.backbone, self.distiller, **{name: optimizer[name] for name in names})

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def inputs(self, batch: dict) -> tuple[Tensor, Labels, Tensor | None]:
        """The images and labels of a micro-batch on the device, mixed; and larger images for the teacher, if any."""
        names = [name for name in ("image", "label", "large_image") if name in batch]
        images, ids, *large = (batch[name].to(self.world.device, non_blocking=True) for name in names)
        if self.mixing is not None:
            images, ids = self.mixing(images, ids, batch["position"], self.teacher_classes)
        return images, Labels(ids), next(iter(large), None)

    def teacher_classes(self, images: Tensor) -> Tensor:
        """B 3 H W -> B H W, the teacher's most probable class of each pixel."""
        with self.autocast():
            return resize(self.teacher(images).logits.float(), images.shape[-2:]).argmax(1)

    def calibrate(self, batches: Callable[[], Iterable[dict]]) -> None:
        """Lets the method measure the teacher on these micro-batches, the same on all ranks."""

        def outputs() -> Iterator[tuple[SegOutput, Labels]]:
            for batch in batches():
                images, labels, large = self.inputs(batch)
                with self.autocast():
                    yield self.teacher(images, batch.get("position"), large), labels

        self.distiller.method.calibrate(outputs)
        broadcast_buffers(self.distiller.method)  # sums on a GPU may differ in their last bits

    def forward(
        self, images: Tensor, labels: Labels, large: Tensor | None = None, positions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The unweighted loss terms, each a mean over this micro-batch."""
        with self.autocast():
            knowledge = None if self.teacher is None else self.teacher(images, positions, large)
            return self.wrapped(images, labels, knowledge)

    def train_step(self, batches: Sequence[dict], measure_gradients: bool = False) -> tuple[dict[str, float], dict]:
        """One optimizer step over this rank's micro-batches.

        Each term is a mean over the elements of a micro-batch. Its weight here is the share of these elements in the
        global batch (all ranks and micro-batches), so the step does not depend on how the global batch is divided.

        Returns:
            The terms and their weighted sum ('loss') over the global batch. With ``measure_gradients`` also the norm of
            each weighted term's gradient on the student, for the first micro-batch of this rank.

        Raises:
            NonFiniteError: on every rank and before any weight changes, if a term or its gradient is not finite on any
                rank. On a GPU the error for a gradient comes from the next call or from ``check``; the weights do not
                change meanwhile. In float16 a gradient that overflows is an error only if no smaller loss scale helps.
        """
        device, weights, last = self.world.device, self.weights, len(batches) - 1
        inputs = [self.inputs(batch) for batch in batches]
        counts = [self.distiller.counts(labels) for _, labels, _ in inputs]
        counts = torch.stack([torch.stack([count[k] for k in weights]) for count in counts])
        everywhere = all_reduce_sum(counts.sum(0))
        shares = counts / everywhere.where(everywhere > 0, 1)  # a term over no elements is 0 already
        on_host = torch.tensor(list(weights.values()), pin_memory=device.type == "cuda")  # else the copy would wait
        factors = shares * on_host.to(device, non_blocking=True)

        sums, norms = torch.zeros(len(weights), device=device), {}
        for i in range(len(batches)):
            self.seed_micro_batch(self.step, i, len(batches))
            with contextlib.nullcontext() if i == last else self.no_sync():
                terms = self.forward(*inputs[i], batches[i].get("position"))
                if measure_gradients and i == 0:
                    norms = gradient_norms(terms, weights, self.student, self.scaler.get_scale())
                values = torch.stack([terms[k] for k in weights])
                sums += shares[i] * values.detach()
                if i == last:  # copied before the backward pass is queued, so that reading does not wait for it
                    read_local = async_read(sums)
                    read_totals = async_read(all_reduce_sum(sums))
                # DDP averages gradients over the ranks; the shares already sum to one over them.
                self.scaler.scale((factors[i] * values).sum() * self.world.size).backward()
        local = dict(zip(weights, read_local(), strict=True))
        totals = dict(zip(weights, read_totals(), strict=True))
        self.check()  # only now, so that the GPU had this step's work before the host asked for the last one's outcome
        if not all(map(math.isfinite, totals.values())):
            raise self.non_finite(self.step, batches, weights, local, self.scaler.get_scale())

        set_learning_rate(self.optimizer, learning_rate_factor(self.step, **self.schedule))
        self.scaler.unscale_(self.optimizer)
        gradients = [each.grad for each in self.distiller.parameters() if each.grad is not None]
        # The maximum norm: a sum of squares may overflow even if every element is finite.
        bad = ~nn.utils.get_total_norm(gradients, math.inf).isfinite()
        scale = self.scaler.scale(torch.ones((), device=device))
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.distiller.parameters(), self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:  # after a step that the scaler skipped, the weights that it averages are unchanged
            update_average(self.ema, self.student, self.ema_decay, self.step)
            broadcast_buffers(self.ema)  # without SyncBatchNorm the running statistics differ between ranks
        self.skipped += bad
        failed = bad & (scale < SMALLEST_LOSS_SCALE) if self.scaled else bad
        self.pending = PendingStep(self.step, batches, weights, local, async_read(torch.stack([failed, scale])))
        self.step += 1
        if device.type != "cuda":
            self.check()
        return {"loss": sum(weights[k] * totals[k] for k in weights), **totals}, norms

    def check(self) -> None:
        """Waits for the last step and checks that its gradient was finite. Every rank must call it.

        Raises:
            NonFiniteError: as ``train_step``.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            failed, scale = pending.outcome()
            if failed:
                raise self.non_finite(*pending[:-1], scale)

    def non_finite(
        self, step: int, batches: Sequence[dict], weights: dict[str, float], terms: dict[str, float], scale: float
    ) -> NonFiniteError:
        """Computes a step again, term by term, to find out which term is not finite and for which samples."""
        micro_batches = []
        for i, batch in enumerate(batches):
            self.seed_micro_batch(step, i, len(batches))
            with self.no_sync():
                found = self.forward(*self.inputs(batch), batch.get("position"))
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
        """Seeds dropout and drop path by the number of the micro-batch in the run, whichever rank computes it."""
        torch.manual_seed(self.seed * 1_000_003 + (step * accumulate + i) * self.world.size + self.world.rank)

    def no_sync(self) -> contextlib.AbstractContextManager:
        """Inside, gradients are not averaged over the ranks."""
        return contextlib.nullcontext() if self.world.size == 1 else self.wrapped.no_sync()

    def scaling(self) -> dict[str, float]:
        """In float16, the loss scale, and how many steps were skipped so far because their gradient overflowed."""
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": int(self.skipped)} if self.scaled else {}

    def state(self) -> dict:
        """Everything that the next steps depend on, except the teacher. Call ``check`` on every rank first.

        Raises:
            NonFiniteError: as ``check``.
        """
        self.check()
        method = self.distiller.method
        return {
            "student": self.student.state_dict(),
            **({} if self.ema is None else {"ema": self.ema.state_dict()}),
            "method": method.state_dict() if method is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_steps": int(self.skipped),
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
        """Resumes from what ``state`` returned. The hyperparameters stay those of this trainer.

        Args:
            state: of the trainer that was interrupted. If it has no average of the weights, the average begins with its
                student. In ``best.pt``, the average may be the student (``Run.write``).
            optimizer: its settings, of the same type.
        """
        self.student.load_state_dict(state.get("trained", state["student"]))
        if self.ema is not None:
            self.ema.load_state_dict(state.get("ema", state["student"]))
        if self.distiller.method is not None:
            self.distiller.method.load_state_dict(state["method"])
        restore_optimizer(self.optimizer, state["optimizer"], self.groups(optimizer))
        # Not the scale of another precision. Older checkpoints have a scaler's state in float16 only.
        if state["scaler"].get("growth_interval") == self.scaler.get_growth_interval():
            self.scaler.load_state_dict(state["scaler"])
        self.skipped.fill_(state.get("skipped_steps", 0))
        self.step = state["step"]
