"""The device that a script computes on."""

import argparse

import torch

DEFAULT = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")  # cuda, mps or cpu


def usable_device(name: str) -> torch.device:
    """The device of this name, for ``argparse``; an error where a tensor cannot be put on it and read back."""
    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{name} is not usable here (--device cpu is): {reason}") from error
