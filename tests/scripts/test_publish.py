"""A folder for the hub: it is read back, its card is valid, and the code in the card runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import models.weights.hugging_face as hub
from engine.checkpoint import save_student
from models import load_student, read_weights
from models.inference import predict
from scripts import publish
from scripts._runs import read_metrics
from tests.conftest import ROOT


def refused(*arguments):
    with pytest.raises(SystemExit) as stop:
        publish.main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: "hf_token")


@pytest.fixture
def quick(monkeypatch):
    """No networks are exported."""
    monkeypatch.setattr(publish.export, "run", lambda args: args.out.write_bytes(b"a network"))


@pytest.mark.slow
def test_the_folder_is_read_back_and_the_code_of_its_card_runs(runs, streets, tmp_path, capsys):
    run, out = runs / "distilled", tmp_path / "card"
    publish.main([str(run), "--out", str(out), "--license", "cc-by-4.0"])
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", "config.py", "metrics.jsonl", "panel.png", "student.onnx", "student.pt2", "student.safetensors"]
    )
    assert list(tmp_path.iterdir()) == [out]

    card = ModelCard.load(out / "README.md")  # raises where the hub's format is violated
    _, about = load_student(run / "student.safetensors")
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "image-segmentation"
    miou = next(result for result in card.data.eval_results if result.metric_type == "mean_iou")
    assert (miou.metric_value, miou.dataset_type, miou.dataset_split) == (about["miou"], "camvid", "val")
    assert miou.metric_args["scales"] == [1.0]
    best = [line for line in read_metrics(run) if line["step"] == about["step"] and "per_class_iou" in line][0]
    for name, iou in best["per_class_iou"].items():
        assert f"| IoU of {name} | {'no pixels' if iou is None else f'{100 * iou:.2f}'} |" in card.text
    assert "| teacher | deeplabv3 test_resnet |" in card.text
    assert re.search(r"\| training cost \| 0\.\d\d CPU hours \(\d+\.\d minutes on 1 x .+\) \|", card.text)

    photo = next(Path(streets).rglob("*.png"))
    Image.open(photo).convert("RGB").save(out / "photo.png")
    plain, ours = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    subprocess.run([sys.executable, "-c", plain], cwd=out, check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", ours], cwd=out, env=environment, check=True, capture_output=True)
    model, _ = load_student(out)
    image = torch.from_numpy(np.array(Image.open(out / "photo.png"))).permute(2, 0, 1)
    classes = predict(model, image)[0]
    written = torch.from_numpy(np.array(Image.open(out / "classes.png")))
    assert (written == classes).float().mean() > 0.999
    names = [about["class_names"][number] for number in classes.unique().tolist()]
    assert said.stdout.decode().strip() == ", ".join(names)


def test_a_student_is_read_from_the_hub(runs, monkeypatch):
    def download(name, file):
        if name != "someone/streets":
            raise OSError("401 Client Error")
        return str(runs / "alone" / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    ours, about = load_student("hf:someone/streets")
    theirs, expected = load_student(runs / "alone")
    assert about == expected
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(FileNotFoundError, match=r"'hf:no/body': student\.safetensors cannot be downloaded \(401"):
        load_student("hf:no/body")


def changed(run, folder, **metadata):
    """A copy of a run with other metadata in its student."""
    weights = read_weights(run / "student.safetensors")
    folder.mkdir()
    for name in ("config.py", "metrics.jsonl", "train.log", "env.txt"):
        (folder / name).write_bytes((run / name).read_bytes())
    save_student(folder / "student.safetensors", weights.tensors, {**weights.metadata, **metadata})
    return folder


def test_a_card_without_metrics_is_refused(runs, tmp_path, quick):
    run = changed(runs / "alone", tmp_path / "run", miou=None)
    assert "has no mIoU: the run was never validated" in refused(run, "--out", tmp_path / "card")
    (run / "student.safetensors").unlink()
    assert "holds no student.safetensors: the run is not finished" in refused(run, "--out", tmp_path / "card")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_hostile_names_are_text(runs, tmp_path, quick):
    names = ["<script>alert(1)</script>", "a|b", "`code`", *(f"class {number}" for number in range(8))]
    run = changed(runs / "alone", tmp_path / "run", class_names=names)
    publish.main([str(run), "--out", str(tmp_path / "<b>card")])
    text = (tmp_path / "<b>card" / "README.md").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, a&#124;b, &#96;code&#96;, class 0" in text
    assert "<script>" not in text
    assert "# &lt;b&gt;card" in text


def test_a_network_of_one_size_says_so(runs, tmp_path, monkeypatch, capsys):
    def one_size(args):
        if args.dynamic:
            raise ValueError("torch.export cannot export this network: aten.strange")
        args.out.write_bytes(b"a network")

    monkeypatch.setattr(publish.export, "run", one_size)
    publish.main([str(runs / "alone"), "--out", str(tmp_path / "card")])
    assert "aten.strange\ntorch: exported for one size instead" in capsys.readouterr().out
    assert "In plain PyTorch (one image of 48 x 64 pixels)" in (tmp_path / "card" / "README.md").read_text()


def test_a_push_without_a_token_ends_in_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    message = refused(runs / "alone", "--out", tmp_path / "card", "--push", "me/streets")
    assert message == ("error: --push me/streets needs a token of huggingface.co: run `hf auth login`, or set HF_TOKEN")
    assert not list(tmp_path.iterdir())


def test_a_push_uploads_the_folder_or_says_why_not(runs, tmp_path, monkeypatch, token, quick, capsys):
    calls = []

    def upload(repo_id, folder_path):
        calls.append(folder_path)
        if repo_id == "me/full":
            raise OSError("413 Too large\nand much more")
        return f"https://huggingface.co/{repo_id}"

    fake = SimpleNamespace(create_repo=lambda name, exist_ok: calls.append(name), upload_folder=upload)
    monkeypatch.setattr(publish, "HfApi", lambda token: fake)
    out = tmp_path / "card"
    publish.main([str(runs / "alone"), "--out", str(out), "--push", "me/streets"])
    assert calls == ["me/streets", out]
    assert "https://huggingface.co/me/streets" in capsys.readouterr().out
    assert 'load_student("hf:me/streets")' in (out / "README.md").read_text()
    full = refused(runs / "alone", "--out", tmp_path / "full", "--push", "me/full")
    assert full == f"error: --push me/full: 413 Too large; {tmp_path / 'full'} is complete"
    assert refused(runs / "alone", "--out", out) == f"error: --out {out} exists; give a new folder"
