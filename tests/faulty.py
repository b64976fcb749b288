"""train_kd.py with a fault: python -m tests.faulty KIND STEP RANK [arguments of train_kd.py...]

KIND is what befalls rank RANK as it begins step STEP in the first of its lives: the signals 'kill' and 'stop', 'nan', a
gradient that is not finite, or 'none'.
"""

import os
import signal
import sys

import train_kd
from engine.trainer import Trainer


def befall(kind: str, step: int, rank: int) -> None:
    def train_step(self, *args, original=Trainer.train_step):
        if (self.step, self.world.rank, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == (step, rank, "0"):
            if kind == "nan":
                self.student.register_forward_hook(spoil)
            elif kind != "none":
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])
        return original(self, *args)

    Trainer.train_step = train_step


def spoil(module, images, output):
    """Adds 0 to the logits, with a gradient of 0 * inf."""
    return output._replace(logits=output.logits + (output.logits - output.logits).sqrt())


if __name__ == "__main__":
    befall(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    train_kd.main(sys.argv[4:])
