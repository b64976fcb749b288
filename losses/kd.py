"""KD: the class distribution of each pixel; and what all methods that compare logits alone have in common."""

from losses.base import METHODS, LogitMethod, pixel_divergence
from models.base import ModelSpec


@METHODS.register("kd")
class KD(LogitMethod):
    """``pixel_divergence``: T^2 KL(softmax(z_t / T) || softmax(z_s / T)) of each pixel.

        L = L_task + weight * L_kd

    Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2, with pixels in
    the place of images. Without void it is the pixel-wise term of github.com/winycg/CIRKD (``losses/kd.py`` there;
    ratio 1, measured), which compares void cells too and has weight 1 at T = 1.

    Args:
        student, teacher: what the two networks declare.
        weight: of the term ``'kd'``, positive.
        temperature: T.

    Raises:
        ValueError: if the class counts differ, or a value makes no sense.
    """

    comparisons = {"kd": pixel_divergence}

    def __init__(self, student: ModelSpec, teacher: ModelSpec, weight: float = 1.0, temperature: float = 1.0):
        super().__init__(student, teacher, {"kd": weight}, temperature)
