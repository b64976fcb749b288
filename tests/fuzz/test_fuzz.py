"""Whatever a file or a command line holds, it is read, or refused by one of our own errors that names it.

FUZZ_CASES=10000 python -m pytest tests/fuzz -s   more than the usual number of cases a target, with the counts
"""

import json
import os
import random
import traceback
import zlib
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import eval as evaluation
import train_kd
from configs.schema import Experiment
from datasets import build_dataset
from datasets.base import read_list
from datasets.packed import PackedDataset
from engine.checkpoint import _comment, load_checkpoint, save_checkpoint
from models import build_model, load_weights, read_weights
from scripts import pack_dataset, predict
from tests.configs.test_configs import PAIR, SHIPPED, load
from tests.engine.test_checkpoint import STATE
from tests.fuzz.mutation import damaged, damaged_text
from utils.config import dump_config, load_config

CASES = int(os.environ.get("FUZZ_CASES", 150))
REFUSALS = (ValueError, OSError)  # ConfigError and UnicodeDecodeError are ValueErrors: what they say is looked at too


@pytest.fixture
def fuzz(request):
    """Runs ``attempt(rng)`` for every case: it may succeed, or raise one of REFUSALS that holds ``name``."""

    def run(attempt, name):
        outcomes, failures = Counter(), {}
        for case in range(CASES):
            rng = random.Random(f"{request.node.name} {case}")
            try:
                with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                    attempt(rng)
                outcomes["read"] += 1
            except SystemExit as error:  # a command line
                outcomes["refused"] += 1
                if not error.code:
                    failures.setdefault("exit 0", f"case {case} ended as if it had succeeded")
            except BaseException as error:
                if type(error) is not UnicodeDecodeError and isinstance(error, REFUSALS) and name in str(error):
                    outcomes["refused"] += 1
                    continue
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} in {where.name}"
                outcomes[kind] += 1
                failures.setdefault(kind, f"case {case}: " + "".join(traceback.format_exception(error))[-2500:])
        print(f"\n{request.node.name}: {CASES} cases: {', '.join(f'{n} {what}' for what, n in outcomes.most_common())}")
        assert not failures, "\n".join(failures.values())

    return run


def test_config_text(fuzz, tmp_path):
    texts, path = [dump_config(load(path)) for path in SHIPPED], tmp_path / "config.py"

    def attempt(rng):
        text = rng.choice(texts)
        content = rng.randbytes(rng.randrange(200)) if rng.random() < 0.1 else damaged_text(text, rng).encode()
        path.write_bytes(damaged(content, rng) if rng.random() < 0.1 else content)
        load_config(path, Experiment)

    fuzz(attempt, "config.py")


LITERALS = [
    "1", "-1", "1e999", "None", "True", "[]", "{}", "()", "''", "{'type': 'kd'}", "{1: 2}", "{'_delete_': True}",
    "[1, [2]]", "{None: 1}", "[{}]", "{'a': {'b': 1}}", "b'x'", "1j", "{1, 2}", "...", "'\\0'", "10" * 2500,
    "[" * 150 + "]" * 150, "(" * 9999, "-" * 9999 + "1", "[" * 90 + "{}" + "]" * 90, "\0", "\ud800", "é", "a b",
    "{{ fileDirname }}",
]  # fmt: skip


def option(rng, places):
    """``key=value`` with keys of a config, or near them."""
    key = rng.choice(places)
    if rng.random() < 0.4:
        key = rng.choice(
            [damaged_text(key, rng), f"{key}.0", f"{key}.x.y", key.partition(".")[0], "", ".", "_base_", "0"]
        )
    value = damaged_text(rng.choice(LITERALS), rng) if rng.random() < 0.5 else rng.choice(LITERALS)
    return f"{key}{'=' if rng.random() < 0.97 else ''}{value}"


def places_of(values, prefix=""):
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from places_of(value, f"{prefix}{name}.")


def test_config_options(fuzz, tmp_path):
    path, places = tmp_path / "config.py", list(places_of(load(PAIR).model_dump()))
    path.write_text(dump_config(load(PAIR)))  # without bases: faster

    def attempt(rng):
        load_config(path, Experiment, [option(rng, places) for _ in range(rng.randint(1, 3))])

    fuzz(attempt, "")


def test_command_lines(fuzz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(dump_config(load(PAIR)))
    (tmp_path / "image.png").write_bytes(b"not a picture")
    places = list(places_of(load(PAIR).model_dump()))
    words = [
        "config.py", "confi.py", "image.png", ".", "", "/", "--work-dir", "--resume", "auto", "--cfg-options",
        "--dry-run", "--force", "--teacher", "--split", "val", "--mode", "slide", "--scales", "0.5,1", "0,nan",
        "--flip",
        "--json", "--save-pred", "--save-vis", "--out", "out", "--alpha", "nan", "0.5", "--device", "cpu", "cuda:99",
        "-x", "--",
        "\0", "é", "x" * 5000, "a.safetensors", "a.onnx", "--wor", "--resum=x",
    ]  # fmt: skip

    def attempt(rng):
        program = rng.randrange(3)
        start = {0: ["config.py"], 1: ["config.py", "a.pt"], 2: ["a.safetensors", "image.png", "--out", "out"]}[program]
        line = start if rng.random() < 0.8 else []
        extra = [option(rng, places) if rng.random() < 0.3 else rng.choice(words) for _ in range(rng.randrange(5))]
        if program == 2:
            predict.main([*line, *extra])  # there are no such weights: it ends before it predicts
            raise AssertionError("predicted without weights")
        args = (train_kd, evaluation)[program].parse_arguments([*line, *extra])
        load_config(args.config, Experiment, args.cfg_options)

    fuzz(attempt, "")


def test_list_file(fuzz, tmp_path):
    for image in ("a.png", "a_y.png", "a b.png", "a b_y.png", "b.png", "x.jpg"):
        (tmp_path / image).touch()
    lists = [
        "a.png a_y.png\nb.png\n",
        "a b.png\ta b_y.png\n\n\n",
        "x.jpg\nb.png\n",
        "\ufeffa.png a.png\r\n",
    ]

    def attempt(rng):
        content = damaged_text(rng.choice(lists), rng).encode()
        content = rng.choice([content, damaged(content, rng), rng.randbytes(rng.randrange(60))])
        (tmp_path / "list.txt").write_bytes(content)
        pairs = read_list(tmp_path, "list.txt")
        assert pairs
        build_dataset("list", tmp_path, "list.txt", class_names=["x", "y"])

    fuzz(attempt, str(tmp_path))


def test_checkpoint(fuzz, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    bare = content[: -len(_comment(b""))] + bytes(2)

    def attempt(rng):
        new = rng.randbytes(rng.randrange(300)) if rng.random() < 0.1 else damaged(content, rng)
        if rng.random() < 0.6:  # signed anew: its digest is right, what it holds is not
            new = damaged(bare, rng)
            new = new.removesuffix(bytes(2)) + _comment(new.removesuffix(bytes(2)) + bytes(2))
        path.write_bytes(new)
        load_checkpoint(path)

    fuzz(attempt, "last.pt")


@pytest.fixture(scope="module")
def network():
    return build_model("test_resnet", "pspnet", 3, width=4)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights(fuzz, tmp_path, network, name):
    path = tmp_path / name
    tensors = network.state_dict()
    about = {"network": {"backbone": "test_resnet", "head": "pspnet"}, "class_names": ["a", "b", "c"]}
    if path.suffix == ".pt":
        torch.save({"student": tensors, "about": about}, path)
    else:
        save_file(tensors, path, {key: json.dumps(value) for key, value in about.items()})
    content = path.read_bytes()

    def attempt(rng):
        # Half of the damages to the first bytes, where a file says what it holds; the rest are numbers.
        head = rng.choice([len(content), min(len(content), 1500)])
        new = damaged(content[:head], rng) + content[head:]
        path.write_bytes(new if rng.random() < 0.9 else rng.randbytes(rng.randrange(300)))
        read_weights(path)
        load_weights(network, path)

    fuzz(attempt, name)


def with_checksums(png):
    """A damaged PNG with the checksums of its chunks made right, as far as there are chunks."""
    data, at = bytearray(png), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(data)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it reads
def test_pictures(fuzz, tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 3, (9, 12, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels), Image.fromarray(pixels[..., 0])]
    if suffix == "png":
        pictures += [pictures[0].convert("RGBA"), pictures[0].quantize(3)]
    contents = []
    for picture in pictures:
        picture.save(tmp_path / f"image.{suffix}")
        contents.append((tmp_path / f"image.{suffix}").read_bytes())
    pictures[1].save(tmp_path / "label.png")
    label = (tmp_path / "label.png").read_bytes()
    (tmp_path / "list.txt").write_text(f"image.{suffix} label.png\n")
    dataset = build_dataset("list", tmp_path, "list.txt", class_names=["x", "y", "z"])

    def attempt(rng):
        broken = rng.randrange(2)
        new = damaged(rng.choice([label, *contents] if broken else contents), rng)
        new = with_checksums(new) if rng.random() < 0.5 else new
        (tmp_path / f"image.{suffix}").write_bytes(contents[0] if broken else new)
        (tmp_path / "label.png").write_bytes(new if broken else label)
        sample = dataset[0]
        assert sample["image"].shape[1:] == sample["label"].shape
        dataset.open_image(0)[: rng.randint(1, 9)]

    fuzz(attempt, str(tmp_path))


def test_packed_index(fuzz, tmp_path):
    for name, size in (("a", (9, 7)), ("b", (5, 8))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{name}_y.png")
    (tmp_path / "list.txt").write_text("a.png a_y.png\nb.png b_y.png\n")
    dataset = build_dataset("list", tmp_path, "list.txt", class_names=["x", "y"])
    pack_dataset.Packer(dataset, tmp_path / "packed").run()
    index = tmp_path / "packed/index.json"
    content = index.read_text()
    values = [None, True, -1, 0, 1, 10**30, 0.5, "", "x", "../a.png", [], [1], {}, {"x": 1}]

    def scramble(value, rng):
        """The same structure with one value, somewhere in it, another."""
        if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
            return rng.choice(values)
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        value[key] = scramble(value[key], rng)
        return value

    def attempt(rng):
        kind = rng.random()
        if kind < 0.6:
            new = json.dumps(scramble(json.loads(content), rng)).encode()
        else:
            new = damaged_text(content, rng).encode() if kind < 0.8 else damaged(content.encode(), rng)
        index.write_bytes(new if kind < 0.99 else b"[" * 10**5)
        packed = PackedDataset(dataset, tmp_path / "packed")
        for number in range(2):
            packed[number]
            packed.find_damage(number, sources=True)

    fuzz(attempt, str(tmp_path / "packed"))
