"""docs/browser.html runs a student in a real browser with the classes of PyTorch."""

import base64
import functools
import http.server
import io
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset
from models import load_student
from models.inference import predict
from scripts import export
from tests.browser import PROGRAM, open_browser
from tests.conftest import ROOT

FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LIBRARY = ROOT / "node_modules" / "onnxruntime-web" / "dist"

# As a user who chooses a file.
CHOOSE = """async (content) => {
    const found = await fetch(`data:image/png;base64,${content}`), data = new DataTransfer();
    data.items.add(new File([await found.blob()], "photo.png", { type: "image/png" }));
    const input = document.querySelector("input");
    input.files = data.files;
    input.dispatchEvent(new Event("change"));
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(runs, tmp_path):
    """The address of a folder with the page, the library and a student of any size."""
    export.main([str(runs / "alone" / "config.py"), str(runs / "alone" / "student.safetensors"), "--dynamic",
                 "--out", str(tmp_path / "student.onnx")])  # fmt: skip
    for file in (ROOT / "docs" / "browser.html", *map(LIBRARY.joinpath, FILES)):
        shutil.copy(file, tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (Debian: apt-get install chromium)")
@pytest.mark.skipif(not LIBRARY.is_dir(), reason="needs npm install --no-save onnxruntime-web")
def test_the_page_gives_the_classes_of_pytorch(site, runs, streets, tmp_path):
    dataset = build_dataset("camvid", str(streets), "val.txt")
    image = dataset[0]["image"]
    model, about = load_student(runs / "alone")
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "png")
    with open_browser(tmp_path / "browser") as page:
        page.call("Page.navigate", url=f"{site}/browser.html")
        wait(page, "ready")
        page.value(f"({CHOOSE})('{base64.b64encode(content.getvalue()).decode()}')")
        wait(page, f"{image.shape[2]} x {image.shape[1]}: ")
        classes = np.array(page.value("[...classes]"), np.uint8).reshape(image.shape[1:])
        names = [page.value(f"names[{number}]") for number in range(len(about["class_names"]))]
        shown = page.value("legend.textContent")
        page.screenshot(tmp_path / "page.png")
        assert page.errors == []
    assert (torch.from_numpy(classes) == predict(model, image)[0]).float().mean() > 0.999
    assert names == about["class_names"]
    assert shown == "".join(names[number] for number in np.unique(classes))


def wait(page, start):
    """Until the page's status begins with ``start``."""
    end = time.monotonic() + 120
    while not (status := page.value("document.querySelector('[role=status]')?.textContent ?? ''")).startswith(start):
        assert time.monotonic() < end, status
        assert not status.startswith("error"), status
        time.sleep(0.2)
