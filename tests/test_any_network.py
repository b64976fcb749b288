"""From a network of another library to a small student on synthetic streets: trained, resumed, evaluated, exported.

python -m pytest tests/test_any_network.py
"""

import json

import pytest
import torch

import eval as evaluation
import train_kd
from datasets import build_dataset
from models import load_student
from models.inference import predict
from models.onnx import OnnxModel
from scripts import export
from scripts.street.scene import write_synthetic
from tests.runs import assert_same, losses, weights

pytestmark = pytest.mark.slow
BASE = """
data = dict(type="camvid", root={root!r}, crop_size=(64, 96), scale_range=(0.8, 1.2), workers=0)
optimizer = dict(type="adamw", lr=2e-3)
schedule = dict(max_iters=20)
train = dict(batch_size=4, precision="fp32")
eval = dict(interval=20)
checkpoint = dict(interval=10)
log = dict(interval=1, panel_images=1)
"""


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    write_synthetic(root, train=16, val=4, size=(96, 128))
    return root


def write(folder, name, streets, text):
    path = folder / f"{name}.py"
    path.write_text(BASE.format(root=str(streets)) + text)
    return str(path)


def train(config, work_dir, *options):
    train_kd.main([config, "--work-dir", str(work_dir), *options])
    return work_dir / "student.safetensors"


def assert_trains_resumes_evaluates_and_exports(config, folder, source=None):
    """A run that is resumed at half of its steps equals the whole run; the file, eval.py and ONNX agree with it."""
    work_dir = folder / "student"
    file = train(config, work_dir)
    whole, logged = weights(work_dir / "last.pt"), losses(work_dir)
    for name in ("last.pt", "step_20.pt", "best.pt", "student.safetensors"):
        (work_dir / name).unlink()
    train(config, work_dir, "--resume", "auto")
    assert_same(weights(work_dir / "last.pt"), whole)
    assert losses(work_dir) == logged

    evaluation.main([config, str(file), "--json", str(folder / "result.json")])
    model, metadata = load_student(file, source)
    assert json.loads((folder / "result.json").read_text())["miou"] == pytest.approx(metadata["miou"], abs=1e-9)

    pytest.importorskip("onnxruntime", reason='needs pip install ".[onnx]"')
    export.main([config, str(file), "--out", str(folder / "student.onnx")])
    images = torch.randint(256, (1, 3, 96, 128), dtype=torch.uint8)
    same = torch.from_numpy(OnnxModel(folder / "student.onnx")(images)) == predict(model, images)
    assert same.float().mean() > 0.999
    return model


def test_mask2former_teaches_resnet18_with_deeplabv3(streets, tmp_path):
    library = pytest.importorskip("transformers", reason='needs pip install ".[transformers]"')
    pytest.importorskip("scipy", reason='needs pip install ".[transformers]"')
    dataset = build_dataset("camvid", str(streets), "train.txt")
    names = dict(enumerate(dataset.class_names))
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    swin = library.SwinConfig(embed_dim=16, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages)
    torch.manual_seed(0)
    model = library.Mask2FormerForUniversalSegmentation(
        library.Mask2FormerConfig(
            backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
            dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
            id2label=names, label2id={name: i for i, name in names.items()},
        )
    )  # fmt: skip
    processor = library.Mask2FormerImageProcessor(do_resize=False, ignore_index=255)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    for step in range(100):  # by the library's own loss
        samples = [dataset[(2 * step + i) % len(dataset)] for i in range(2)]
        images, labels = ([sample[key].numpy() for sample in samples] for key in ("image", "label"))
        loss = model(**processor(images, segmentation_maps=labels, return_tensors="pt")).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "mask2former")
    processor.save_pretrained(tmp_path / "mask2former")
    config = write(
        tmp_path, "config", streets,
        f"teacher = dict(source='transformers:{tmp_path / 'mask2former'}')\n"
        "student = dict(backbone='resnet18', head='deeplabv3', width=16)\ndistill = dict(type='hmkd')\n",
    )  # fmt: skip
    assert_trains_resumes_evaluates_and_exports(config, tmp_path)


def test_a_frozen_vit_with_a_linear_head_teaches_segformer(streets, tmp_path):
    teacher = write(
        tmp_path, "teacher", streets,
        "student = dict(backbone='vit_tiny_patch16_224', head='linear', freeze=('backbone',))\n",
    )  # fmt: skip
    file = train(teacher, tmp_path / "teacher")
    config = write(
        tmp_path, "config", streets,
        f"teacher = dict(weights={str(file)!r})\n"
        "student = dict(backbone='mit_b0', head='segformer', width=16)\ndistill = dict(type='hmkd')\n",
    )  # fmt: skip
    assert_trains_resumes_evaluates_and_exports(config, tmp_path)


def test_a_unet_of_smp_teaches_mobilenetv4_with_fpn(streets, tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason='needs pip install ".[smp]"')
    unet = "source='smp:Unet', arguments=dict(encoder_name='resnet18', decoder_channels=(64, 32, 16, 8, 8))"
    file = train(write(tmp_path, "teacher", streets, f"student = dict({unet})\n"), tmp_path / "teacher")
    config = write(
        tmp_path, "config", streets,
        f"teacher = dict({unet}, weights={str(file)!r})\n"
        "student = dict(backbone='mobilenetv4_conv_small', head='fpn', width=16)\ndistill = dict(type='hmkd')\n",
    )  # fmt: skip
    assert_trains_resumes_evaluates_and_exports(config, tmp_path)
