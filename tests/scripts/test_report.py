import cv2
import numpy as np
import pytest
import torch

import train_kd
from engine import report
from models.base import SegOutput
from scripts.report import main
from utils.visualize import GAP, LINE, WIDTH

KINDS = [["correct", "wrong"], ["correct", "void"]]


@pytest.fixture(scope="module")
def runs(experiments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, config in (("alone", "alone"), ("distilled", "hmkd")):
        options = ["--cfg-options", "schedule.max_iters=2", "eval.interval=1", "log.panel_images=0"]
        train_kd.main([experiments[config], "--work-dir", str(folder / name), *options])
    return folder


def test_runs_side_by_side(runs, tmp_path, capsys):
    main(
        [
            str(runs / "alone"),
            str(runs / "distilled"),
            "--out",
            str(tmp_path),
            "--titles",
            "alone",
            "HMKD",
            "--images",
            "2",
        ]
    )
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [row[0] for row in cells[2:]] == ["teacher of HMKD", "alone", "HMKD"]
    assert [row[3] for row in cells[2:]] == ["", "none", "hmkd, test_resnet"]
    assert [row[1] for row in cells[2:]] == ["test_resnet deeplabv3", "mit_b0 segformer", "mit_b0 segformer"]
    curves, panel = (cv2.imread(str(tmp_path / name)) for name in ("curves.png", "panel.png"))
    assert np.ptp(curves) > 100
    # Four columns of 4:3 pictures; for each of two images a row of predictions and a row of their errors.
    assert panel.shape[1] == WIDTH
    column = (WIDTH - 5 * GAP) // 4
    legend = panel.shape[0] - 4 * (LINE + round(column * 3 / 4) + GAP)
    assert 0 < legend < 6 * LINE


class Fixed(torch.nn.Module):
    """Predicts the same class map for every image."""

    def __init__(self, classes):
        super().__init__()
        self.classes = torch.tensor(classes)
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        logits = torch.nn.functional.one_hot(self.classes, 3).permute(2, 0, 1)[None].float()
        return SegOutput(logits, {}, None)


def test_each_error_map_of_the_panel_is_titled_with_the_miou_of_its_image(monkeypatch):
    class Dataset:
        class_names = ["a", "b", "c"]
        palette = [(10, 0, 0), (0, 10, 0), (0, 0, 10)]

        def __getitem__(self, index):
            label = torch.tensor([[0, 0], [1, 255]], dtype=torch.uint8)
            return {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "label": label, "name": "x"}

    seen = {}
    monkeypatch.setattr(report, "panel", lambda rows, legend: seen.update(rows=rows, legend=legend))
    report.prediction_panel(Dataset(), [0], {"net": Fixed([[0, 1], [1, 2]])}, {"net": {}})
    (above, below), legend = seen["rows"], seen["legend"]
    # Class a: 1 of 2 pixels; class b: 1 of 2; class c is only predicted at void and so counts for nothing.
    assert [title for title, _ in above] == ["image", "net"]
    assert [title for title, _ in below] == ["truth", "errors (mIoU 50.0)"]
    assert below[1][1].tolist() == [[list(legend[kind]) for kind in row] for row in KINDS]
    assert below[0][1][1, 1].tolist() == list(legend["void"])


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: config .*nothing/config\.py does not exist"):
        main([str(tmp_path / "nothing"), "--out", str(tmp_path)])
