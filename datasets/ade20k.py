"""ADE20K (Zhou et al., CVPR 2017) as the scene parsing benchmark SceneParse150: 20210 / 2000 images, 150 classes."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset, read_classes
from utils.names import VOID


@DATASETS.register("ade20k")
class ADE20K(SegDataset):
    """Images with the label files of the benchmark: 1..150, void 0.

    Prediction files hold the same ids, as the evaluation server expects them.

    Args:
        root: folder with ``ADEChallengeData2016``.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        names, palette, ids = read_classes("ade20k")
        super().__init__(root, list_file, names, palette, {0: VOID, **ids})
