import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from datasets.listed import ListedDataset
from engine import report
from models.base import SegOutput
from scripts._runs import last_protocol
from scripts.report import facts, main
from utils.visualize import GAP, LINE, WIDTH

KINDS = [["correct", "wrong"], ["correct", "void"]]


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


def test_the_best_is_of_the_last_protocol_alone(runs, tmp_path, capsys):
    """The run is finished and resumed with another scale: 0.9 at step 2 was never seen with it."""
    shutil.copytree(runs / "alone", tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    log = [{**line, "miou": 0.9} if "miou" in line else line for line in log]
    log += [{"step": 2, "new_protocol": True, "best_step": 1, "best_miou": 0.25}]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    table = (tmp_path / "out/table.md").read_text()
    assert "| 25.00 (1) | not measured |" in table
    assert "90.00" not in table
    assert (
        "run: resumed at step 2 with another evaluation or validation set; its mIoUs are those from there on" in table
    )


def test_entries_since_the_last_change_of_the_protocol():
    old, new = {"step": 2, "miou": 0.9}, {"step": 4, "miou": 0.5}
    first = {"step": 1, "new_protocol": True, "best_step": 1, "best_miou": 0.7}
    second = {"step": 3, "new_protocol": True, "best_step": 2, "best_miou": 0.25}
    assert last_protocol([old, new]) == ([old, new], [(2, 90), (4, 50)])
    assert last_protocol([first, old, second, {"step": 3, "teacher_miou": 0.1}, new])[1] == [(2, 25), (4, 50)]
    assert last_protocol([old, {"step": 3, "new_protocol": True}, new])[1] == [(4, 50)]


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


def test_runs_that_were_validated_on_other_data_have_their_own_part_and_files(runs, streets, tmp_path):
    shutil.copytree(streets, tmp_path / "moved")
    shutil.copytree(runs / "alone", tmp_path / "other")
    config = tmp_path / "other" / "config.py"
    config.write_text(config.read_text().replace(str(streets), str(tmp_path / "moved")))
    out = tmp_path / "out"
    main([str(runs / "alone"), str(tmp_path / "other"), "--out", str(out)])
    for folder, name, absent in ((out, "alone", "other"), (out / "data_2", "other", "alone")):
        assert {file.name for file in folder.iterdir()} >= {"table.md", "curves.png", "panel.png"}
        table = (folder / "table.md").read_text()
        assert f"\n| {name} |" in table
        assert f"\n| {absent} |" not in table
    assert "they differ in data.root or data.val_list" in (out / "data_2" / "table.md").read_text()
    assert (out / "index.html").read_text().count('<article class="part">') == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"class_names": ["cat", "bird"]}, "class_names"),
        ({"palette": [[1, 2, 3], [4, 5, 6]]}, "palette"),
        ({"id_table": {0: 0, 255: 1}}, "id_table"),
        ({"list_file": "b.txt"}, "root or data.val_list"),
    ],
)
def test_other_classes_colours_ids_or_files_are_other_data(tmp_path, change, key):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}.png {name}_label.png\n")
        for file in (f"{name}.png", f"{name}_label.png"):
            cv2.imwrite(str(tmp_path / file), np.zeros((4, 4), np.uint8))
    given = {"root": tmp_path, "list_file": "a.txt", "class_names": ["cat", "dog"]}
    first, same, other = (facts(ListedDataset(**each)) for each in (given, given, given | change))
    assert first == same
    assert [name for name in first if first[name] != other[name]] == [f"data.{key}"]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*nothing: expected the work dir of a run \(config\.py\)"):
        main([str(tmp_path / "nothing"), "--out", str(tmp_path)])
