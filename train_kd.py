"""Trains a student network, alone or by distillation from a frozen teacher, as one config file says.

python train_kd.py configs/demo/hmkd.py                                 one GPU, or the CPU
torchrun --nproc_per_node=4 train_kd.py configs/hmkd/camvid_b4_r18.py   four GPUs, or four CPU processes
python train_kd.py CONFIG --resume auto                                 goes on where the work dir stopped
python train_kd.py CONFIG --dry-run                                     builds all, runs one step, prints tables
python train_kd.py CONFIG --cfg-options train.batch_size=8 data.root=/data/camvid
"""

import argparse
import contextlib
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.build import build_distiller, build_split, build_student, build_teacher, build_train_stream
from configs.schema import Experiment
from datasets import make_loader
from datasets.samplers import PositionBatches
from models import SegModel
from utils.checkpoint import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint, save_student
from utils.config import changed_values, dump_config, load_config
from utils.distributed import World, all_reduce_sum, barrier, broadcast_buffers, close_world, gather_objects, init_world
from utils.evaluation import evaluate
from utils.files import write_atomically
from utils.log import RunLog, environment, peak_memory_mib, progress_bar, say
from utils.metrics import SegMetrics
from utils.report import network_table, prediction_panel, table, term_table
from utils.schedule import build_optimizer, gradient_norms, learning_rate_factor, parameter_groups, set_learning_rate
from utils.signals import StopSignals


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="Python config file, e.g. configs/demo/hmkd.py")
    parser.add_argument("--work-dir", type=Path, help="folder of the run (default: work_dirs/<config name>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH|auto",
        help="go on from this checkpoint, or from the newest in the work dir (afresh without one)",
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="a.b=c", help="override config values")
    parser.add_argument("--dry-run", action="store_true", help="build all, run one step, print tables, write nothing")
    args = parser.parse_args(arguments)
    args.work_dir = args.work_dir or Path("work_dirs") / Path(args.config).stem
    return args


class Trainer:
    """What a run consists of, and what can be done with it: step, evaluate, save, restore."""

    def __init__(self, config: Experiment, source: str, world: World, pretrained: bool = True):
        self.config, self.world = config, world
        self.stream = build_train_stream(config, source)
        self.validation = build_split(config, source, "val")
        num_classes = self.validation.num_classes
        torch.manual_seed(config.train.seed)
        # The student first: it starts from the same weights whether or not a teacher is built after it.
        self.student, loaded = build_student(config, source, num_classes, pretrained)
        self.teacher, teacher_loaded = build_teacher(config, source, num_classes, pretrained)
        self.loaded = [report for report in (loaded, teacher_loaded) if report is not None]
        self.distiller = build_distiller(config, source, self.student, self.teacher)

        if world.size > 1 and world.device.type == "cuda":
            self.distiller = nn.SyncBatchNorm.convert_sync_batchnorm(self.distiller)
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        for module in filter(None, (self.distiller, self.teacher)):
            module.to(world.device, memory_format=layout)
        self.wrapped = DistributedDataParallel(self.distiller) if world.size > 1 else self.distiller

        options = config.optimizer
        groups = parameter_groups(
            self.student.backbone, self.distiller, lr=options.lr, head_lr_mult=options.head_lr_mult,
            weight_decay=options.weight_decay, decay_norm_bias=options.decay_norm_bias,
        )  # fmt: skip
        self.optimizer = build_optimizer(options.type, groups, momentum=options.momentum, betas=options.betas)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16")
        self.step = 0  # optimizer steps done
        self.best = {"step": 0, "miou": -1.0}
        self.teacher_miou: float | None = None

    @property
    def networks(self) -> dict[str, SegModel]:
        """The networks by role, the student last."""
        return {**({"teacher": self.teacher} if self.teacher is not None else {}), "student": self.student}

    def loader(self, stop_step: int) -> torch.utils.data.DataLoader:
        """Micro-batches of this rank from the current step to ``stop_step``."""
        world, train = self.world, self.config.train
        batches = PositionBatches(self.step, stop_step, train.batch_size, world.size, world.rank, train.accumulate)
        return make_loader(
            self.stream,
            batch_sampler=batches,
            workers=self.config.data.workers,
            pin_memory=world.device.type == "cuda",
        )

    def autocast(self) -> torch.autocast:
        dtype = self.config.train.autocast_dtype
        return torch.autocast(self.world.device.type, dtype, enabled=dtype is not None)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss terms, each a mean over this micro-batch; the teacher only looks on."""
        with self.autocast():
            with torch.no_grad():
                knowledge = self.teacher(images) if self.teacher is not None else None
            return self.wrapped(images, labels, knowledge)

    def train_step(self, batches: list[dict], measure_gradients: bool = False) -> tuple[dict[str, float], dict]:
        """One optimizer step over this rank's micro-batches.

        A term is a mean over its elements, weighted here by its share in the elements of the global batch (all ranks
        and micro-batches): the step does not depend on how the global batch is divided.

        Returns:
            The terms and their weighted sum ('loss') over the global batch; and the norm of each weighted term's
            gradient on the student, if asked for (of rank 0's first micro-batch).

        Raises:
            FloatingPointError: on every rank and before any weight changes, if a term is not finite on one of them.
        """
        device, weights, last = self.world.device, self.distiller.weights, len(batches) - 1
        images = [batch["image"].to(device, non_blocking=True) for batch in batches]
        labels = [batch["label"].to(device, non_blocking=True) for batch in batches]
        counts = torch.stack([torch.stack([self.distiller.counts(y)[k].float() for k in weights]) for y in labels])
        shares = counts / all_reduce_sum(counts.sum(0)).clamp(min=1)
        factors = shares * torch.tensor(list(weights.values()), device=device)

        sums, norms = torch.zeros(len(weights), device=device), {}
        for i in range(len(batches)):
            # Dropout and drop path follow from the micro-batch's number in the run, on whichever rank it is.
            number = (self.step * len(batches) + i) * self.world.size + self.world.rank
            torch.manual_seed(self.config.train.seed * 1_000_003 + number)
            with contextlib.nullcontext() if i == last or self.world.size == 1 else self.wrapped.no_sync():
                terms = self.forward(images[i], labels[i])
                if measure_gradients and i == 0 and self.world.is_main:
                    norms = gradient_norms(terms, weights, self.student)
                values = torch.stack([terms[k] for k in weights])
                # DDP averages gradients over the ranks; the shares already sum to one over them.
                self.scaler.scale((factors[i] * values).sum() * self.world.size).backward()
            sums += shares[i] * values.detach()
        local = sums.tolist()
        totals = dict(zip(weights, all_reduce_sum(sums).tolist(), strict=True))
        if not all(map(math.isfinite, totals.values())):
            names = [] if all(map(math.isfinite, local)) else [name for batch in batches for name in batch["name"]]
            raise FloatingPointError(
                f"step {self.step}: not finite: {', '.join(k for k, v in totals.items() if not math.isfinite(v))}; "
                f"samples where it happened: {', '.join(sum(gather_objects(names), []))}; no weight was changed. "
                "Lower optimizer.lr, set train.grad_clip, or use train.precision='bf16' instead of 'fp16'"
            )

        schedule = self.config.schedule.model_dump(exclude={"type"})
        set_learning_rate(self.optimizer, learning_rate_factor(self.step, **schedule))
        self.scaler.unscale_(self.optimizer)
        if self.config.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.distiller.parameters(), self.config.train.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": sum(weights[k] * totals[k] for k in weights), **totals}, norms

    def evaluate(self, model: SegModel, description: str) -> SegMetrics:
        """Metrics of ``model`` on the whole validation set, shared out over the ranks."""
        broadcast_buffers(model)  # without SyncBatchNorm every rank has running statistics of its own
        return evaluate(
            model, self.validation, device=self.world.device, autocast_dtype=self.config.train.autocast_dtype,
            rank=self.world.rank, world_size=self.world.size, workers=self.config.data.workers,
            description=description, **self.config.eval.protocol,
        )  # fmt: skip

    def verify_teacher(self) -> None:
        """Evaluates the teacher, once in the life of a run.

        Raises:
            ValueError: if it is no better than chance (mIoU <= 1 / K) and this is not allowed.
        """
        self.teacher_miou = self.evaluate(self.teacher, "teacher").miou
        chance = 1 / self.teacher.num_classes
        if self.teacher_miou <= chance and not self.config.train.allow_weak_teacher:
            raise ValueError(
                f"the teacher {self.config.teacher.weights} has mIoU {self.teacher_miou:.4f} on the validation set, "
                f"no better than chance ({chance:.4f}): check its weights, class order and normalization, "
                "or set train.allow_weak_teacher=True"
            )

    def state(self) -> dict:
        """All that training goes on from; the teacher is not part of it."""
        method = self.distiller.method
        return {
            "student": self.student.state_dict(),
            "method": method.state_dict() if method is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": self.best,
            "teacher_miou": self.teacher_miou,
            "config": self.config.model_dump(),
        }

    def restore(self, path: Path) -> None:
        """Goes on from the checkpoint ``path``.

        Raises:
            ValueError: if the file is damaged, or was made with a config that computes something else.
        """
        state = load_checkpoint(path)
        # How often is evaluated, saved and logged, and by how many workers, changes nothing that is learned.
        free = ("eval.", "checkpoint.", "log.", "data.workers")
        changed = [
            line for line in changed_values(state["config"], self.config.model_dump()) if not line.startswith(free)
        ]
        if changed:
            raise ValueError(
                f"{path} was made with another config; go on with the config.py of its folder, or start afresh with "
                "another --work-dir. Changed since:\n  " + "\n  ".join(changed)
            )
        self.student.load_state_dict(state["student"])
        if self.distiller.method is not None:
            self.distiller.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.teacher_miou = state["step"], state["best"], state["teacher_miou"]


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint to go on from, or None to start afresh.

    Raises:
        ValueError: if the work dir already holds a run and nothing was said about resuming it.
    """
    if args.resume not in (None, "auto"):
        return Path(args.resume)
    newest = newest_checkpoint(args.work_dir)
    if newest is not None and args.resume is None:
        raise ValueError(
            f"{args.work_dir} already holds a run ({newest.name}): add --resume auto to go on with it, "
            "or choose another --work-dir"
        )
    return newest


def train(config: Experiment, args: argparse.Namespace, world: World) -> None:
    """The whole run: build, restore, verify the teacher, then step, log, validate, save."""
    checkpoint = None if args.dry_run else find_checkpoint(args)
    trainer = Trainer(config, args.config, world, pretrained=not args.dry_run)
    if args.dry_run:
        dry_run(trainer)
        return
    if checkpoint is not None:
        trainer.restore(checkpoint)
    total, work_dir = config.schedule.max_iters, args.work_dir
    log = RunLog(work_dir, trainer.step, total, config.train.batch_size, active=world.is_main)
    if world.is_main:
        write_atomically(work_dir / "config.py", dump_config(config).encode())
        write_atomically(work_dir / "env.txt", "".join(f"{k}: {v}\n" for k, v in environment().items()).encode())
        start = f"going on from {checkpoint} at step {trainer.step}" if checkpoint else "starting"
        say(f"{work_dir}: {start}; {world.size} process(es) on {world.device.type}, {config.train.precision}")
        for report in trainer.loaded:
            say(str(report))
    if trainer.teacher is not None and trainer.teacher_miou is None and config.train.verify_teacher:
        trainer.verify_teacher()
        log.teacher(trainer.step, trainer.teacher_miou)

    signals = StopSignals()
    bar = progress_bar(total, trainer.step, work_dir.name, active=world.is_main)
    batches = iter(trainer.loader(total))
    while trainer.step < total:
        measure = config.log.grad_norm_interval > 0 and (trainer.step + 1) % config.log.grad_norm_interval == 0
        terms, norms = trainer.train_step([next(batches) for _ in range(config.train.accumulate)], measure)
        step, last = trainer.step, trainer.step == total
        bar.update()

        if step % config.log.interval == 0 or last or measure:
            log.training(step, terms, trainer.distiller.weights, norms, trainer.optimizer.param_groups[-1]["lr"])
        if step % config.eval.interval == 0 or last:
            with log.paused():
                validate(trainer, work_dir, log)
        stopping = signals.agreed(world)
        if world.is_main and (step % config.checkpoint.interval == 0 or last or stopping):
            save_checkpoint(trainer.state(), work_dir / f"step_{step}.pt", work_dir / "last.pt")
            prune_checkpoints(work_dir, config.checkpoint.keep)
        if stopping and not last:
            log.close()
            if world.is_main:
                say(f"stopped at step {step}; the same command with --resume auto goes on")
            sys.exit(128 + stopping)
    bar.close()
    log.close()
    if world.is_main:
        finish(trainer, work_dir)
    barrier()


def validate(trainer: Trainer, work_dir: Path, log: RunLog) -> None:
    """Evaluates the student, keeps it if it is the best so far, logs figures and pictures."""
    metrics, dataset = trainer.evaluate(trainer.student, "student"), trainer.validation
    better = metrics.miou > trainer.best["miou"]
    if better:
        trainer.best = {"step": trainer.step, "miou": metrics.miou}
    if not trainer.world.is_main:
        return
    if better:
        save_checkpoint(trainer.state(), work_dir / "best.pt")
    log.validation(trainer.step, metrics, dataset.class_names, trainer.best, trainer.teacher_miou)
    shown = range(min(trainer.config.log.panel_images, len(dataset)))
    if shown:
        with trainer.autocast():
            protocols = dict.fromkeys(trainer.networks, trainer.config.eval.protocol)
            picture = prediction_panel(dataset, shown, trainer.networks, protocols, errors_of=["student"])
        log.picture(trainer.step, "val/panel", picture)


def finish(trainer: Trainer, work_dir: Path) -> None:
    """Writes the best student alone, with all that is needed to rebuild it, and prints the summary."""
    config, best = trainer.config, load_checkpoint(work_dir / "best.pt")
    save_student(work_dir / "student.safetensors", best["student"], {
        "network": config.student.model_dump(exclude={"pretrained"}),
        "normalization": trainer.student.normalization._asdict(),
        "class_names": list(trainer.validation.class_names), "palette": trainer.validation.palette.tolist(),
        **best["best"], "config": config.model_dump(), "environment": environment(),
    })  # fmt: skip
    rows = [["student, best", str(trainer.best["step"]), f"{trainer.best['miou']:.4f}"]]
    if trainer.teacher_miou is not None:
        rows.insert(0, ["teacher", "", f"{trainer.teacher_miou:.4f}"])
    say(table(["validation", "step", "mIoU"], rows))
    say(f"{work_dir / 'student.safetensors'} holds the best student")


def dry_run(trainer: Trainer) -> None:
    """One step on one batch; prints networks, terms and memory."""
    terms, norms = trainer.train_step(list(trainer.loader(stop_step=1)), measure_gradients=True)
    if trainer.world.is_main:
        say(network_table(trainer.networks, trainer.config.data.crop_size))
        say(term_table(trainer.distiller.weights, terms, norms))
        say(f"peak memory {peak_memory_mib():.0f} MiB on {trainer.world.device.type}; nothing was written")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        config = load_config(args.config, Experiment, args.cfg_options)
        train(config, args, init_world())
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    finally:
        close_world()


if __name__ == "__main__":
    main()
