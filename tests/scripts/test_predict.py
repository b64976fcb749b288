"""The script as a user runs it: on a tiny network whose file says all that is needed, and on one that was trained."""

import shutil
from importlib.util import find_spec
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import eval as evaluation
import train_kd
from engine.checkpoint import save_student
from models import build_model
from scripts import _video, export, predict
from scripts._video import Video, write_video
from scripts.street.scene import render_scene
from utils.visualize import overlay

NETWORK = {"backbone": "test_resnet", "head": "deeplabv3", "output_stride": 16, "width": 8}
PALETTE = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
SIZE = (48, 64)
IMAGES = [render_scene(seed, SIZE)[0] for seed in range(5)]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(file, network) of three classes; random weights, centred on an image so that it shows several classes."""
    torch.manual_seed(1)
    model = build_model(num_classes=3, **NETWORK).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.head.classifier.weight)
        model.head.classifier.bias -= model(batch(IMAGES[0])).logits.mean((0, 2, 3))
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, model.state_dict(), {"network": NETWORK, "class_names": list("abc"), "palette": PALETTE})
    return path, model


@pytest.fixture
def clip(tmp_path):
    """Five frames of 48 x 64 at 12.5 frames/s."""
    path = tmp_path / "clip.avi"
    record(path, IMAGES)
    return path


def record(path, images):
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 12.5, SIZE[::-1])
    for image in images:
        writer.write(image[..., ::-1].copy())
    writer.release()


def batch(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0)


@torch.inference_mode()
def classes_of(model, image, scale=1.0):
    """Another way to the class map than ``models.inference``."""
    view = batch(image).float()
    if scale != 1.0:
        view = F.interpolate(view, scale_factor=scale, mode="bilinear", antialias=True)
    found = F.interpolate(model(view).logits, image.shape[:2], mode="bilinear").argmax(1)[0].numpy().astype(np.uint8)
    assert len(np.unique(found)) > 1, "one class alone would show no mistake"
    return found


def run(*arguments):
    predict.main([str(argument) for argument in arguments])


def refused(*arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return str(stop.value)


def read(path):
    return np.array(Image.open(path))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_mirrored_and_its_overlays_are_of_the_argmax(student, tmp_path, capsys):
    (tmp_path / "in" / "deep" / "er").mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(tmp_path / "in" / "one.png")
    Image.fromarray(IMAGES[1][:, :51]).save(tmp_path / "in" / "deep" / "er" / "t.w.o.PNG")
    Image.fromarray(IMAGES[2]).save(tmp_path / "in" / ".hidden.png")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    run(student[0], tmp_path / "in", "--out", out, "--alpha", "0.25", "--save-pred")
    expected = ["deep/er/t.w.o.png", "deep/er/t.w.o_classes.png", "legend.png", "one.png", "one_classes.png"]
    assert files(out) == expected
    for name, image in (("one", IMAGES[0]), ("deep/er/t.w.o", IMAGES[1][:, :51])):
        classes = classes_of(student[1], image)
        assert np.array_equal(read(out / f"{name}_classes.png"), classes)
        assert np.array_equal(read(out / f"{name}.png"), overlay(image, classes, PALETTE, 0.25))
    legend = read(out / "legend.png").reshape(-1, 3)
    assert all((legend == color).all(1).sum() > 100 for color in PALETTE)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("whole at scale 1 (the file has no settings of a validation)")
    assert said[-1].startswith(f"wrote to {out}: images 2, videos 0")


def test_classes_are_those_that_eval_scores(experiments, streets, tmp_path):
    options = ["schedule.max_iters=2", "eval.interval=2", "log.panel_images=0", "train.precision=bf16"]
    options += ["eval.scales=(0.75,1.0)", "eval.flip=True"]
    train_kd.main([experiments["alone"], "--work-dir", str(tmp_path / "run"), "--cfg-options", *options])
    weights = tmp_path / "run" / "student.safetensors"
    evaluation.main([str(tmp_path / "run" / "config.py"), str(weights), "--save-vis", str(tmp_path / "eval")])
    run(weights, streets / "val", "--out", tmp_path / "out")
    run(tmp_path / "run" / "best.pt", streets / "val", "--out", tmp_path / "of_best")
    run(weights, streets / "val", "--out", tmp_path / "plain", "--scales", "1")
    names = files(tmp_path / "eval")
    assert len(names) == 5
    for folder, same in (("out", True), ("of_best", True), ("plain", False)):
        pairs = [(read(tmp_path / "eval" / name), read(tmp_path / folder / name)) for name in names]
        assert all(np.array_equal(a, b) for a, b in pairs) == same


def test_scales(student, tmp_path):
    Image.fromarray(IMAGES[3]).save(tmp_path / "a.png")
    run(student[0], tmp_path / "a.png", "--out", tmp_path / "out", "--scales", "0.5", "--save-pred")
    assert np.array_equal(read(tmp_path / "out" / "a_classes.png"), classes_of(student[1], IMAGES[3], 0.5))


def test_a_photo_comes_out_upright(student, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn clockwise from how it is stored
    Image.fromarray(np.rot90(IMAGES[0])).save(tmp_path / "photo.png", exif=turned)
    run(student[0], tmp_path / "photo.png", "--out", tmp_path / "out", "--alpha", "0")
    assert np.array_equal(read(tmp_path / "out" / "photo.png"), IMAGES[0])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_other_pixel_formats_become_rgb(student, tmp_path, mode):
    picture = Image.fromarray(IMAGES[0]).convert(mode)
    picture.save(tmp_path / "a.png")
    run(student[0], tmp_path / "a.png", "--out", tmp_path / "out", "--alpha", "0")
    assert np.array_equal(read(tmp_path / "out" / "a.png"), np.array(picture.convert("RGB")))


def test_a_video_keeps_its_frames_size_and_rate(student, clip, tmp_path, capsys):
    out = tmp_path / "out"
    Image.fromarray(IMAGES[0]).save(tmp_path / "photo.png")
    run(student[0], clip, tmp_path / "photo.png", "--out", out, "--save-pred")
    assert "5 frames at 12.5 frames/s" in capsys.readouterr().out
    frames, overlays = list(Video(clip)), Video(out / "clip.mp4")
    assert overlays.fps == 12.5
    shown = list(overlays)
    assert len(shown) == 5
    for number, (frame, found) in enumerate(zip(frames, shown, strict=True)):
        classes = classes_of(student[1], frame)
        assert np.array_equal(read(out / "clip_classes" / f"{number:06d}.png"), classes)
        wanted = overlay(frame, classes, PALETTE).astype(float)
        assert found.shape == (*SIZE, 3)
        # Compressed; yet red for blue, or a frame for its neighbour, would be further off.
        assert np.abs(found - wanted).mean() < min(12, np.abs(found - wanted[..., ::-1]).mean())
    assert (out / "photo.png").is_file()


def test_a_video_that_is_cut_off_is_said(student, clip, tmp_path, capsys):
    record(clip, IMAGES * 8)
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    run(student[0], clip, "--out", tmp_path / "out")
    assert "its header says 40: is it truncated?" in capsys.readouterr().out
    assert 1 < len(list(Video(tmp_path / "out" / "clip.mp4"))) < 40


def test_a_video_is_written_whole_or_not_at_all(student, clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(student[0], clip, "--out", out)
    before = (out / "clip.mp4").read_bytes()
    seen = []

    def interrupted(self, image):
        seen.append(image)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return np.zeros(image.shape[:2], np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(predict.Predictor, "__call__", interrupted)
        assert refused(student[0], clip, "--out", out).startswith("interrupted")
    with pytest.raises(ValueError, match=r"clip.mp4: frame 2 is \(32, 64, 3\); expected \(48, 64, 3\) as the first"):
        write_video(out / "clip.mp4", [IMAGES[0], IMAGES[1][:32]], 12.5)
    monkeypatch.setattr(_video, "encoder", lambda: "OpenCV")
    with pytest.raises(ValueError, match="MPEG-4 cannot hold a video of 48 x 64 at 1e\\+06 frames/s"):
        write_video(out / "clip.mp4", IMAGES, 1e6)
    monkeypatch.setattr(_video.cv2, "VideoWriter", lambda *_: MagicMock())  # writes nothing, and says so to nobody
    with pytest.raises(OSError, match="expected 5 frames of 48 x 64, found"):
        write_video(out / "clip.mp4", IMAGES, 12.5)
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        write_video(out / "clip.avi", IMAGES, 12.5)
    assert files(out) == ["clip.mp4", "legend.png"]
    assert (out / "clip.mp4").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "codec", "there"),
    [("PyAV", "h264", find_spec("av")), ("ffmpeg", "h264", shutil.which("ffmpeg")), ("OpenCV", "FMP4", True)],
)
def test_the_encoders_write_the_same_frames(tmp_path, monkeypatch, name, codec, there):
    if not there:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(_video, "encoder", lambda: name)
    odd = [image[:47, :63] for image in IMAGES]
    assert write_video(tmp_path / "odd.mp4", odd if name != "OpenCV" else IMAGES, 30000 / 1001) == 5
    video = cv2.VideoCapture(str(tmp_path / "odd.mp4"), cv2.CAP_FFMPEG)
    assert int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode() == codec
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97, abs=0.001)
    for frame, found in zip(odd, Video(tmp_path / "odd.mp4"), strict=True):
        assert found.shape == (48, 64, 3)
        assert np.abs(frame - found[:47, :63].astype(float)).mean() < 8


def test_without_an_encoder_of_h264_it_is_said(student, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_video, "find_spec", lambda name: None)
    monkeypatch.setattr(_video.shutil, "which", lambda name: None)
    run(student[0], clip, "--out", tmp_path / "out")
    assert "written as MPEG-4, which browsers do not play; for H.264: pip install av" in capsys.readouterr().out
    assert len(list(Video(tmp_path / "out" / "clip.mp4"))) == 5


def test_side_by_side_with_a_legend(student, clip, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    run(student[0], tmp_path / "a.png", clip, "--out", tmp_path / "out", "--side-by-side", "--legend")
    picture, wanted = read(tmp_path / "out" / "a.png"), overlay(IMAGES[0], classes_of(student[1], IMAGES[0]), PALETTE)
    assert picture.shape[1] == 128
    assert np.array_equal(picture[:48], np.concatenate([IMAGES[0], wanted], axis=1))
    below = picture[48:].reshape(-1, 3).astype(int)
    assert all((np.abs(below - color).sum(1) < 60).any() for color in PALETTE)
    frame = next(iter(Video(tmp_path / "out" / "clip.mp4")))
    assert frame.shape == (len(picture) + len(picture) % 2, 128, 3)


def test_windows_cover_an_image_and_their_borders_are_not_seen(student, tmp_path, monkeypatch):
    """A network that is wrong within 8 pixels of the border of what it sees; only the image's own border shows it."""
    sizes = []

    def wrong_at_borders(self, window):
        sizes.append(window.shape[:2])
        found = np.full(window.shape[:2], 2, np.uint8)
        found[8:-8, 8:-8] = window[8:-8, 8:-8, 0] % 2
        return found

    monkeypatch.setattr(predict.Predictor, "predict", wrong_at_borders)
    image = np.random.default_rng(0).integers(0, 256, (200, 330, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "huge.png")
    run(student[0], tmp_path / "huge.png", "--out", tmp_path / "out", "--window", 64, "--save-pred")
    expected = np.full((200, 330), 2)
    expected[8:-8, 8:-8] = image[8:-8, 8:-8, 0] % 2
    assert np.array_equal(read(tmp_path / "out" / "huge_classes.png"), expected)
    assert set(sizes) == {(64, 64)}
    assert len(sizes) == 4 * 7  # a step of 48: (200 - 64) / 48 and (330 - 64) / 48, rounded up, and one more


def test_a_window_as_large_as_the_image_changes_nothing(student, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    run(student[0], tmp_path / "a.png", "--out", tmp_path / "out", "--window", 64, "--save-pred")
    assert np.array_equal(read(tmp_path / "out" / "a_classes.png"), classes_of(student[1], IMAGES[0]))


@pytest.mark.slow
def test_onnx_agrees_with_torch(experiments, student, streets, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights, model = student
    config, both, classes = tmp_path / "three.py", tmp_path / "both.onnx", tmp_path / "classes.onnx"
    (tmp_path / "list.txt").write_text("".join(f"val/{name}\n" for name in files(streets / "val")))
    config.write_text(
        f"_base_ = [{experiments['alone']!r}]\n"
        f"data = dict(_delete_=True, type='list', root={str(streets)!r}, train_list='train.txt', crop_size=(32, 48), "
        f"val_list={str(tmp_path / 'list.txt')!r}, class_names=['a', 'b', 'c'], id_table={{0: 0, 1: 1, 2: 2}})\n"
        f"student = dict(_delete_=True, **{NETWORK!r})\n"
    )
    export.main([str(config), str(weights), "--dynamic", "--outputs", "classes", "logits", "--out", str(both)])
    graph = onnx.load(both)
    del graph.graph.output[1]
    onnx.save(graph, classes)
    Image.fromarray(IMAGES[1]).save(tmp_path / "a.png")
    # Pixels are rounded where they are scaled; from classes alone, the outlines are scaled too.
    for network, scale, least in ((both, 1, 0.999), (classes, 1, 0.999), (both, 1.5, 0.99), (classes, 1.5, 0.95)):
        out = tmp_path / f"{network.stem}_{scale}"
        run(network, tmp_path / "a.png", "--out", out, "--scales", scale, "--save-pred")
        assert (read(out / "a_classes.png") == classes_of(model, IMAGES[1], scale)).mean() >= least


def test_refusals_before_any_work(student, tmp_path):
    weights, out = student[0], tmp_path / "out"
    for name in ("a.png", "a.jpg", "b_classes.png", "b.png", "legend.png"):
        Image.fromarray(IMAGES[0]).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "one" / "c.png")
    a = tmp_path / "a.png"
    assert "input nothing.png does not exist" in refused(weights, "nothing.png", "--out", out)
    assert "empty contains no image and no video" in refused(weights, tmp_path / "empty", "--out", out)
    assert "would both be written to" in refused(weights, a, tmp_path / "a.jpg", "--out", out)
    assert "would both be written to" in refused(weights, a, a, "--out", out)
    collide = [tmp_path / "b.png", tmp_path / "b_classes.png"]
    assert "b_classes.png" in refused(weights, *collide, "--out", out, "--save-pred")
    assert "the legend and" in refused(weights, tmp_path / "legend.png", "--out", out)
    assert "is an input" in refused(weights, a, "--out", tmp_path)
    assert "is inside the input folder" in refused(weights, tmp_path / "one", "--out", tmp_path / "one" / "out")
    assert not out.exists()
    assert np.array_equal(read(a), IMAGES[0])


def test_refusals_of_checkpoints(student, teacher_weights, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    rest = [tmp_path / "a.png", "--out", tmp_path / "out"]
    assert "none.pt does not exist" in refused(tmp_path / "none.pt", *rest)
    assert "a.png cannot be read as a checkpoint" in refused(tmp_path / "a.png", *rest)
    (tmp_path / "half.safetensors").write_bytes(student[0].read_bytes()[:999])
    assert "half.safetensors cannot be read" in refused(tmp_path / "half.safetensors", *rest)
    assert "does not say how its network is built" in refused(teacher_weights, *rest)
    encoder = {"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}
    torch.save(encoder, tmp_path / "imagenet.pth")
    assert "does not say how its network is built" in refused(tmp_path / "imagenet.pth", *rest)
    about = {"network": NETWORK, "class_names": list("abc"), "palette": PALETTE, "config": {"eval": {"mode": "wohle"}}}
    save_student(tmp_path / "odd.safetensors", student[1].state_dict(), about)
    assert "config.eval: mode: 'wohle' is not valid; did you mean 'whole'" in refused(
        tmp_path / "odd.safetensors", *rest
    )
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("no network")
    assert "text.onnx cannot be read as an ONNX file" in refused(tmp_path / "text.onnx", *rest)
    assert not (tmp_path / "out").exists()


def spoil(path, kind):
    picture = Image.fromarray(IMAGES[0])
    if kind == "16 bit":
        Image.fromarray(np.zeros(SIZE, np.uint16)).save(path, "png")
    elif kind == "animated":
        picture.save(path, "gif", save_all=True, append_images=[Image.fromarray(IMAGES[1])])
    elif kind == "text":
        path.write_text("no image")
    else:
        picture.save(path, "png")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("16 bit", "has 16 bits a channel"),
        ("animated", "has 2 pictures"),
        ("text", "cannot be decoded"),
        ("cut off", "cannot be decoded"),
    ],
)
def test_a_broken_image_stops_and_what_was_written_stays(student, tmp_path, kind, message):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    spoil(tmp_path / "b.png", kind)
    error = refused(student[0], tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out")
    assert f"b.png {message}" in error
    assert error.endswith(f"stopped at {tmp_path / 'b.png'}: 1 of 2 are finished, in {tmp_path / 'out'}")
    assert files(tmp_path / "out") == ["a.png", "legend.png"]


def test_16_bits_are_read_as_in_training(student, tmp_path):
    """12 bits: 16 times the 8-bit image, in the range 0 to 16 x 255, is that image."""
    about = {"network": NETWORK, "class_names": list("abc"), "palette": PALETTE}
    save_student(
        tmp_path / "s.safetensors", student[1].state_dict(), about | {"config": {"data": {"image_range": [0, 4080]}}}
    )
    for name, pixels in (("8", IMAGES[0]), ("12", IMAGES[0].astype(np.uint16) * 16)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[..., ::-1])
        run(tmp_path / "s.safetensors", tmp_path / f"{name}.png", "--out", tmp_path / "out")
    assert (tmp_path / "out/8.png").read_bytes() == (tmp_path / "out/12.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no video at all\n" * 100])
def test_a_broken_video_is_named(student, tmp_path, content):
    (tmp_path / "bad.mp4").write_bytes(content)
    assert "bad.mp4 cannot be opened as a video" in refused(student[0], tmp_path / "bad.mp4", "--out", tmp_path / "out")
    assert files(tmp_path / "out") == ["legend.png"]


@pytest.mark.parametrize(
    "option",
    [
        ("--alpha", "1.5"),
        ("--alpha", "nan"),
        ("--scales", "0"),
        ("--scales", "inf"),
        ("--window", "9"),
        ("--device", "abacus"),
    ],
)
def test_options_out_of_range(student, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stop:
        run(student[0], tmp_path / "a.png", "--out", tmp_path / "out", *option)
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_an_image_that_is_too_small_is_named_with_its_size_and_what_to_set(tmp_path):
    network, image = {"backbone": "mit_b0", "head": "segformer", "width": 16}, tmp_path / "x.png"
    about = {"network": network, "class_names": list("abc"), "palette": PALETTE}
    save_student(tmp_path / "mit.safetensors", build_model(num_classes=3, **network).state_dict(), about)
    Image.new("RGB", (40, 20)).save(image)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "mit.safetensors", image, "--out", tmp_path / "out")
    message = str(stop.value)
    assert "the image has 20 x 40 pixels (H x W); the network needs at least 29 x 29" in message
    assert "scales of 1.45 or more" in message
    assert f"stopped at {image}" in message
    run(tmp_path / "mit.safetensors", image, "--out", tmp_path / "out", "--scales", "1.45")
