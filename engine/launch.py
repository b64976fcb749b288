"""The main function of ``train_kd.py`` and ``eval.py`` on every rank; an error ends the process with one line."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from traceback import clear_frames

import torch.distributed as dist

from configs.schema import Experiment
from engine.crash import write_crash_dump
from utils.config import load_config
from utils.console import error_message
from utils.distributed import World, init_world, lost_process_message, make_deterministic, print_first


def launch(
    command: Callable[[Experiment, Namespace, World], int],
    args: Namespace,
    work_dir: Path | None = None,
    read_config: Callable[..., Experiment] = load_config,
) -> None:
    """Loads the config, joins the other ranks and runs the command; exits with its code or with an error message.

    Of the ranks that have the same error, only the first prints it.

    Args:
        command: takes the config, ``args`` and this process; returns the exit code.
        args: with ``config``, the path of a file, and ``cfg_options``.
        work_dir: folder of a run that can be resumed; the crash dump is written there. None: no such run.
        read_config: reads the config, as ``load_config``.
    """
    try:
        config = read_config(args.config, Experiment, args.cfg_options)
        if config.train.deterministic:
            make_deterministic()
        outcome = command(config, args, init_world(config.train.timeout))
        if dist.is_initialized():
            dist.destroy_process_group()
    except (RuntimeError, ConnectionError) as error:  # a killed worker may also end its connection first
        outcome = f"error: {lost_process_message(error, config.train.timeout)}"
        if work_dir is not None:
            outcome += " --resume auto resumes from the last checkpoint"
    except (ValueError, OSError, FloatingPointError) as error:
        # The process group is not closed: that would wait for ranks that have no error.
        message = f"error: {error_message(error)}"
        dumped = "" if work_dir is None else write_crash_dump(error, work_dir)
        clear_frames(error.__traceback__)  # a worker's error refers to itself and would keep the workers alive
        outcome = message + dumped if print_first(message) else dumped.strip() or 1
    except KeyboardInterrupt:
        outcome = "interrupted"
        if work_dir is not None:
            outcome += " before the first step or by a second Ctrl-C: nothing was saved since the last checkpoint"
    if outcome:
        sys.exit(outcome)  # not inside the handlers above: their tracebacks keep the loader's workers alive
