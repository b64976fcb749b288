"""Downloads from a server in this process; of the real sources, torchvision's are compared with its own table."""

import hashlib
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.models import ResNet18_Weights, ResNet101_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights

from models.weights.layouts import LAYOUTS
from scripts import download_pretrained
from scripts.download_pretrained import Weights, main, read_publishers, read_table

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``CONTENT`` under any path, as told.

    Attributes:
        ranges: the Range header of each request, None where it had none.
        knows_ranges: whether it answers them.
        status: what it answers, whatever is asked.
        kind: the content type.
        closes_after: bytes of a body that it sends; None for all.
        states: sha256 in a redirect to the file, as Hugging Face sends.
    """

    knows_ranges, status, kind, closes_after, states = True, 200, "application/octet-stream", None, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        if server.status != 200:
            self.send_error(server.status)
            return
        if server.states and not self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("X-Linked-Etag", f'"{server.states}"')
            self.send_header("Location", f"/moved{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        server.ranges.append(self.headers["Range"])
        body, first = CONTENT, 0
        if self.headers["Range"] and server.knows_ranges:
            first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            body = CONTENT[first:]
            self.send_response(206 if body else 416)
            last = f"{first}-{len(CONTENT) - 1}" if body else "*"
            self.send_header("Content-Range", f"bytes {last}/{len(CONTENT)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.closes_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def offer(monkeypatch, server):
    """Makes the table one entry, 'net', of this server's file with these digits of a sha256."""

    def set_table(digits=SHA256[:8]):
        entry = Weights("net", "net.pth", "", digits, "", "NVlabs", "", "", f"[download]({server.url}/net.pth)")
        monkeypatch.setattr(download_pretrained, "read_table", lambda: {"net": entry})

    set_table()
    return set_table


def refused(tmp_path) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["net", "--out", str(tmp_path)])
    assert stop.value.code.startswith("error: ")
    return stop.value.code


def test_whole_file_then_nothing_more_to_do(offer, server, tmp_path, capsys):
    main(["net", "--out", str(tmp_path / "new" / "folder")])
    assert (tmp_path / "new" / "folder" / "net.pth").read_bytes() == CONTENT
    assert f"1.0 MB, sha256 {SHA256} (as published)" in capsys.readouterr().out
    main(["net", "--out", str(tmp_path / "new" / "folder")])
    assert "exists, sha256 as published" in capsys.readouterr().out
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["net.pth"]


def test_only_the_rest_of_a_started_file_is_asked_for(offer, server, tmp_path):
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:300_000])
    main(["net", "--out", str(tmp_path)])
    assert server.ranges == ["bytes=300000-"]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert not (tmp_path / "net.pth.part").exists()


def test_a_file_that_was_whole_but_not_in_place(offer, server, tmp_path):
    (tmp_path / "net.pth.part").write_bytes(CONTENT)
    main(["net", "--out", str(tmp_path)])
    assert server.ranges == ["bytes=1048576-"]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_started_file_longer_than_the_whole_is_fetched_anew(offer, server, tmp_path, capsys):
    (tmp_path / "net.pth.part").write_bytes(CONTENT + b"more")
    main(["net", "--out", str(tmp_path)])
    assert "starting again" in capsys.readouterr().out
    assert server.ranges == ["bytes=1048580-", None]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again_and_says_so(offer, server, tmp_path, capsys):
    server.knows_ranges = False
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:300_000])
    main(["net", "--out", str(tmp_path)])
    assert "cannot resume; starting again" in capsys.readouterr().out
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_cut_connection_keeps_what_came(offer, server, tmp_path):
    server.closes_after = 400_000
    message = refused(tmp_path)
    assert "Run the same command again to resume" in message
    assert (tmp_path / "net.pth.part").read_bytes() == CONTENT[:400_000]
    assert not (tmp_path / "net.pth").exists()
    server.closes_after = None
    main(["net", "--out", str(tmp_path)])
    assert server.ranges == [None, "bytes=400000-"]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_wrong_hash_is_not_put_in_place(offer, tmp_path):
    offer("01234567")
    message = refused(tmp_path)
    assert SHA256 in message
    assert "begins with 01234567" in message
    assert list(tmp_path.iterdir()) == []


def test_a_hash_that_the_server_states_is_checked(offer, server, tmp_path, capsys):
    offer("not stated")
    server.states = SHA256
    main(["net", "--out", str(tmp_path)])
    assert "(as published)" in capsys.readouterr().out
    (tmp_path / "net.pth").unlink()
    server.states = "0" * 64
    assert f"begins with {'0' * 64}" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_published_hash(offer, server, tmp_path, capsys):
    offer("not stated")
    main(["net", "--out", str(tmp_path)])
    assert f"sha256 {SHA256} (none is published)" in capsys.readouterr().out
    (tmp_path / "net.pth").write_bytes(b"mine")
    main(["net", "--out", str(tmp_path)])
    assert "exists, not checked" in capsys.readouterr().out
    assert (tmp_path / "net.pth").read_bytes() == b"mine"
    assert server.ranges == [None]


def test_another_file_in_its_place_is_left_alone(offer, server, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"mine")
    message = refused(tmp_path)
    assert "is another file: its sha256" in message
    assert "--out" in message
    assert (tmp_path / "net.pth").read_bytes() == b"mine"
    assert server.ranges == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_dead_link_says_how_to_do_it_by_hand(offer, server, tmp_path, status):
    server.status = status
    message = refused(tmp_path)
    assert f"HTTP {status}" in message
    assert "open https://github.com/NVlabs/SegFormer in a browser on any machine" in message
    assert f"save the file as {tmp_path}/net.pth," in message
    assert f"`sha256sum {tmp_path}/net.pth` begins with {SHA256[:8]}" in message
    assert list(tmp_path.iterdir()) == []


def test_no_network_names_the_link_to_open_elsewhere(offer, server, tmp_path):
    server.shutdown()
    server.server_close()
    message = refused(tmp_path)
    assert "cannot be reached (" in message
    assert f"By hand: open {server.url}/net.pth in a browser on any machine" in message


def test_a_web_page_is_not_weights(offer, server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    assert "is a web page, not a file" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_what_came(offer, tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, mode):
            self.path = path

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, chunk):
            self.path.write_bytes(chunk[:1000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download_pretrained, "open", Full, raising=False)
    message = refused(tmp_path)
    assert "No space left on device" in message
    assert "Run the same command again to resume" in message
    assert (tmp_path / "net.pth.part").stat().st_size == 1000


def test_an_interrupt_keeps_what_came(offer, tmp_path, monkeypatch):
    def interrupt(bar, count):
        raise KeyboardInterrupt

    monkeypatch.setattr(download_pretrained.tqdm, "update", interrupt)
    with pytest.raises(SystemExit, match="run the same command again to resume"):
        main(["net", "--out", str(tmp_path)])
    assert CONTENT.startswith((tmp_path / "net.pth.part").read_bytes())
    assert not (tmp_path / "net.pth").exists()


def test_names_are_checked_before_anything_is_fetched(capsys):
    with pytest.raises(SystemExit, match="unknown name 'resnet81'; did you mean 'resnet18'"):
        main(["mit_b0", "resnet81"])
    with pytest.raises(SystemExit, match="mit_nvlabs has no direct link") as stop:
        main(["mit_b0", "mit_nvlabs"])
    assert "https://github.com/NVlabs/SegFormer" in stop.value.code
    assert "pretrained/mit_nvlabs/mit_b{0..5}.pth" in stop.value.code
    assert capsys.readouterr().out == ""


def test_out_must_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["resnet18", "--out", str(tmp_path / "file")])
    assert "is a file; expected a folder" in capsys.readouterr().err


def test_the_table_is_printed_without_its_links():
    done = subprocess.run(
        [sys.executable, "scripts/download_pretrained.py"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = [line.split()[1] for line in lines if line.startswith("|")]
    assert names[0] == "name"
    assert names[2:] == list(read_table())
    assert lines[2].split(" | ")[-1] == "download |"
    assert lines[-1].startswith("- NVlabs, <https://github.com/NVlabs/SegFormer>: NVIDIA Source Code License")


def test_the_configs_files_are_in_the_table_or_trained_here():
    text = "".join(path.read_text() for path in (ROOT / "configs").rglob("*/*.py"))
    wanted = set(re.findall(r"[\"']pretrained/([^\"']+)", text))
    offered = {file for weights in read_table().values() for file in weights.files}
    readme = (ROOT / "pretrained" / "README.md").read_text()
    assert {"resnet18.pth", "resnet101.pth", "mit_b0.pth", "mit_b4.pth"} <= wanted & offered
    for file in wanted - offered:
        assert f"`{file}` | `configs/baselines/{Path(file).stem}.py`" in readme
        assert (ROOT / "configs" / "baselines" / f"{Path(file).stem}.py").is_file()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet18", ResNet18_Weights.IMAGENET1K_V1),
        ("resnet101", ResNet101_Weights.IMAGENET1K_V1),
        ("deeplabv3_r50_voc", DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1),
        ("deeplabv3_r101_voc", DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1),
    ],
)
def test_torchvision_says_the_same(name, source):
    weights = read_table()[name]
    assert weights.files == {f"{name}.pth": source.url}
    assert float(weights.megabytes) == pytest.approx(source.meta["_file_size"] * 2**20 / 1e6, abs=0.05)  # MiB


def test_rows_are_consistent():
    table = read_table().values()
    assert len(table) == 40
    assert len({weights.name for weights in table}) == len({weights.place for weights in table}) == 40
    assert {weights.layout for weights in table} <= {layout.name for layout in LAYOUTS}
    for weights in table:
        assert weights.publisher in read_publishers()
        holds = next(layout.holds for layout in LAYOUTS if layout.name == weights.layout)
        assert weights.key == {"backbone": "student.pretrained", "all": "teacher.weights"}[holds]
        assert bool(weights.files) == (weights.link != "by hand")
        assert bool(weights.digits) == (weights.publisher in ("torchvision", "mmsegmentation"))
        for url in weights.files.values():
            assert url.startswith("https://")
            assert url.endswith(f"-{weights.digits}.pth" if weights.digits else (".pth", ".json", ".bin"))


def test_a_network_of_hugging_face_is_a_folder_of_three_files():
    assert read_table()["mit_b4_hf"].files == {
        f"mit_b4_hf/{file}": f"https://huggingface.co/nvidia/mit-b4/resolve/main/{file}"
        for file in ("config.json", "preprocessor_config.json", "pytorch_model.bin")
    }
