import cv2
import numpy as np
import pytest

import train_kd
from scripts.report import main


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
    # Seven columns (image, truth, three predictions, two errors) of 240-pixel rows in 4:3.
    assert panel.shape[1] == pytest.approx(7 * 320, rel=0.1)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: config .*nothing/config\.py does not exist"):
        main([str(tmp_path / "nothing"), "--out", str(tmp_path)])
