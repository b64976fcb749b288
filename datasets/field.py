"""Published data sets whose label files hold ids by one table, from ``datasets/classes``."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset, read_classes
from utils.names import VOID


class TableDataset(SegDataset):
    """A data set whose classes are in the file ``datasets/classes/NAME.txt``; ``void`` is one more id."""

    name: str
    void = VOID

    def __init__(self, root: str | Path, list_file: str | Path):
        names, palette, ids = read_classes(self.name)
        super().__init__(root, list_file, names, palette, ids | {self.void: VOID})


@DATASETS.register("ade20k")
class ADE20K(TableDataset):
    """Images with the label files of the benchmark: 1..150, void 0.

    Prediction files hold the same ids, as the evaluation server expects them. ADE20K (Zhou et al., CVPR 2017) as the
    scene parsing benchmark SceneParse150: 20210 / 2000 images, 150 classes. The root has ``ADEChallengeData2016``.
    """

    name, void = "ade20k", 0


@DATASETS.register("coco_stuff")
class COCOStuff(TableDataset):
    """COCO's images of 2017 with the pixelmaps of things and stuff: ids 0..181, eleven of them without class, void 255.

    COCO-Stuff (Caesar et al., CVPR 2018), the 164k version: 118287 / 5000 images, 80 things and 91 kinds of stuff. Its
    authors give no colours, so they are generated. The root has ``train2017``, ``val2017`` and
    ``stuffthingmaps_trainval2017``.
    """

    name = "coco_stuff"


@DATASETS.register("voc")
class VOC(TableDataset):
    """Images with label files of 0..20, void 255: SegmentationClass, or SegmentationClassAug with SBD's labels.

    PASCAL VOC 2012 (Everingham et al., IJCV 2010): 1464 / 1449 images, or 10582 / 1449 with SBD's labels, 21 classes.
    The root has ``VOCdevkit``.
    """

    name = "voc"
