"""KD: the student learns the teacher's class distribution of each pixel."""

from losses.base import METHODS, LogitMethod, pixel_divergence
from losses.labels import Pixels
from models.base import ModelSpec


@METHODS.register("kd")
class KD(LogitMethod):
    """``pixel_divergence``: T^2 KL(softmax(z_t / T) || softmax(z_s / T)) of each pixel.

        L = L_task + weight * L_kd

    Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2, with pixels
    instead of images. Without void it is the pixel-wise term of github.com/winycg/CIRKD (``losses/kd.py``; ratio 1,
    measured), which also compares void cells and has weight 1 at T = 1.

    Args:
        weight: of the term ``'kd'``, positive.
    """

    comparisons = {"kd": pixel_divergence}

    def __init__(
        self,
        student: ModelSpec,
        teacher: ModelSpec,
        weight: float = 1.0,
        temperature: float = 1.0,
        pixels: Pixels = "labelled",
    ):
        super().__init__(student, teacher, {"kd": weight}, temperature, pixels)
