"""The command, run as the README writes it and as a module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.make_synthetic import main

ROOT = Path(__file__).parents[2]


def test_the_documented_command(tmp_path):
    command = [sys.executable, "scripts/make_synthetic.py", "--out", str(tmp_path / "data")]
    command += ["--train", "2", "--val", "1", "--size", "32", "48", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout
    assert (tmp_path / "data" / "train.txt").read_text().count("\n") == 2
    made = json.loads((tmp_path / "data" / "synthetic.json").read_text())
    assert made | {"train": 2, "val": 1, "test": 0, "size": [32, 48], "seed": 3} == made


def test_again_says_so_and_another_is_an_error(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "data"), "--train", "1", "--val", "1", "--size", "32", "32"]
    main(arguments)
    main(arguments)
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--seed", "1"])
    assert stop.value.code == 2
    assert "delete that folder or choose another" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "file" / "streets"), "--train", "1", "--val", "1"])
    assert capsys.readouterr().err.splitlines()[-1].partition(": ")[2].startswith("error: ")
