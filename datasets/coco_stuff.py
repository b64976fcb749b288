"""COCO-Stuff (Caesar et al., CVPR 2018), the 164k version: 118287 / 5000 images, 80 things and 91 kinds of stuff."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset
from datasets.listed import distinct_colours
from utils.names import VOID

NAMES = """\
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper,
pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone,
wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
CLASSES = tuple(" ".join(name.split()) for name in NAMES.split(","))
# The id in a pixelmap is the id in COCO's annotations minus 1. These things of COCO have no pixels and are no classes:
# street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush.
ABSENT = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
IDS = {raw: train for train, raw in enumerate(sorted(set(range(182)) - set(ABSENT)))} | {VOID: VOID}


@DATASETS.register("coco_stuff")
class COCOStuff(SegDataset):
    """COCO's images of 2017 with the pixelmaps of things and stuff: ids 0..181, eleven of them without class, void 255.

    Its authors give no colours, so they are generated.

    Args:
        root: folder with ``train2017``, ``val2017`` and ``stuffthingmaps_trainval2017``.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        super().__init__(root, list_file, CLASSES, distinct_colours(len(CLASSES) + 1)[1:], IDS)  # without black
