"""What inspect_network.py prints of a network, and that its last line is a teacher that builds it again."""

import numpy as np
import pytest

from configs.schema import Teacher
from models import build_wrapped
from scripts.inspect_network import main
from utils.config import validate
from utils.visualize import write_png

SOURCE = "python:tests.models.adapters.modules:plain"
OPTIONS = ["--options", "normalization=imagenet", "arguments={'form': 'nested'}", "output=heads.0.masks"]


def test_it_prints_modules_logits_and_a_section_to_paste_and_draws_the_prediction(tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_png(tmp_path / "image.png", rng.integers(256, size=(48, 70, 3), dtype=np.uint8))
    pictures = ["--image", str(tmp_path / "image.png"), "--out", str(tmp_path / "out.png")]
    main([SOURCE, *OPTIONS, "taps={'early': 'stem'}", *pictures])
    printed = capsys.readouterr().out
    shapes = {line.split()[0]: " ".join(line.split()[1:]) for line in printed.splitlines() if line.startswith("  ")}
    assert shapes["stem"] == "6 x 16 x 16"
    assert shapes["deep"] == "10 x 4 x 4"
    assert shapes["classifier"] == "11 x 16 x 16"
    assert "taps: early 6@4\nlogits: 11 classes at stride 4, cnn\nclasses: no names" in printed
    line = next(line for line in printed.splitlines() if line.startswith("teacher = "))
    section = eval(line.removeprefix("teacher = "))
    model, _ = build_wrapped(**validate(section, Teacher, "x.py").wrapped)
    assert model.spec.taps == {"early": (6, 4)}
    assert (tmp_path / "out.png").stat().st_size > 0


def test_an_error_is_one_message(capsys):
    with pytest.raises(SystemExit, match="error: .*does not say how its images are normalised: set normalization"):
        main([SOURCE])
