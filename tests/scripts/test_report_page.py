"""The page of scripts/report.py: in a real browser, with damaged and hostile input, and its figures."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from configs.schema import Experiment
from engine.build import build_student, load_trained
from engine.data import build_split
from engine.evaluation import evaluate
from models import read_weights
from scripts._runs import read_metrics, read_run, read_runs
from scripts.page import part
from scripts.page.charts import line_chart, style
from scripts.page.measure import KINDS, Subject, kinds_of_pixels, measure
from scripts.report import main
from tests.browser import PROGRAM, open_browser
from utils.config import load_config

SECTIONS = [
    "What ran", "Curves", "Classes", "Accuracy, time and size", "Teacher and student", "Confusion matrix", "Images",
    "Config and provenance",
]  # fmt: skip
CPU = torch.device("cpu")
HOSTILE = "<script>document.title='taken'</script>"
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


def report(out, *arguments):
    main([*map(str, arguments), "--out", str(out)])
    return (out / "index.html").read_text()


@pytest.fixture(scope="module")
def pages(runs, streets, tmp_path_factory):
    """The page of two runs, that of a comparison of them, and that of hostile names; by name."""
    folder = tmp_path_factory.mktemp("pages")
    report(folder / "runs", runs / "alone", runs / "distilled")
    report(folder / "comparison", comparison_of(runs, folder / "compared"))
    report(folder / "hostile", hostile_run(runs, streets, folder), "--titles", HOSTILE)
    return {name: folder / name / "index.html" for name in ("runs", "comparison", "hostile")}


def comparison_of(runs, folder):
    """A comparison as compare.py writes it: two methods, two seeds, validation mIoUs of 0.50 0.52 and 0.54 0.58."""
    mious = {"student alone": (0.50, 0.52), "hmkd": (0.54, 0.58)}
    methods = {}
    for name, run in (("student alone", "alone"), ("hmkd", "distilled")):
        target = folder / "runs" / name.replace(" ", "_")
        for seed in (3, 12):
            shutil.copytree(runs / run, target / f"seed_{seed}")
        figures = {
            str(seed): {"val": {"miou": miou, "per_class_iou": {"Sky": miou}}, "test": None, "best": {"miou": miou},
                        "step_seconds": 1.0, "peak_memory_mib": 1.0, "environment": {"commit": "a"}, "iterations": 2}
            for seed, miou in zip((3, 12), mious[name], strict=True)
        }  # fmt: skip
        methods[name] = {"runs": figures, "teacher": None}
    result = {
        "methods": methods, "split": {"val": "val.txt", "test": None}, "seeds": [3, 12], "protocol": None, "jobs": 1,
        "budget": {"iterations": 2, "seconds": None}, "crop_size": [32, 48], "eval": {}, "precision": "fp32",
        "device": "cpu",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def hostile_run(runs, streets, folder):
    """A run whose class names, paths and config strings are markup."""
    data = folder / "<b>data</b>"
    shutil.copytree(streets, data)
    shutil.copytree(runs / "alone", folder / "hostile_run")
    config = load_config(runs / "alone" / "config.py", Experiment).model_dump()
    names = [HOSTILE, "\"'><img src=x onerror=document.title='taken'>", *map(str, range(9))]
    ids = {**{k: k for k in range(11)}, 11: 255, 255: 255}
    config["data"] |= {"type": "list", "root": str(data), "class_names": names, "id_table": ids, "color_table": None}
    config["data"] |= {"palette": [[k, 0, 9] for k in range(11)]}
    config["protocol"] = HOSTILE
    text = "".join(f"{key} = {value!r}\n" for key, value in config.items())
    (folder / "hostile_run" / "config.py").write_text(text)
    log = [{**line, HOSTILE: 1.0} for line in read_metrics(runs / "alone")]
    (folder / "hostile_run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder / "hostile_run" / "env.txt").write_text(f"commit: {HOSTILE}\n{HOSTILE}: 1\n")
    return folder / "hostile_run"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@needs_browser
@pytest.mark.parametrize("name", ["runs", "comparison"])
@pytest.mark.parametrize("width", [380, 800, 1600])
def test_every_section_is_visible_at_every_width_without_an_error(pages, browser, name, width):
    browser.errors.clear()
    browser.open(pages[name], width=width)
    is_seen = "s.checkVisibility() && s.offsetHeight > 60 && s.getBoundingClientRect().right <= innerWidth"
    sections = f"[...document.querySelectorAll('section')].filter((s) => {is_seen})"
    seen = browser.value(f"{sections}.map((s) => s.querySelector('h3').textContent)")
    assert seen == (["What ran", "Comparison", *SECTIONS[1:]] if name == "comparison" else SECTIONS)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0 && i.alt.length > 5)")
    assert browser.value("document.querySelectorAll('nav a').length") == len(seen)
    assert browser.errors == []


@needs_browser
def test_a_button_sorts_a_table_both_ways(pages, browser):
    browser.open(pages["runs"])
    table = (
        "[...document.querySelectorAll('table')].find((t) => t.caption.textContent.startsWith('mIoU of each image'))"
    )
    column = f"[...{table}.tBodies[0].rows].map((r) => parseFloat(r.cells[2].textContent))"
    before = browser.value(column)
    browser.value(f"{table}.tHead.rows[0].cells[2].querySelector('button').focus()")
    browser.press("Enter")
    assert browser.value(column) == sorted(before, reverse=True)
    assert browser.value(f"{table}.tHead.rows[0].cells[2].ariaSort") == "descending"
    browser.press("Enter")
    assert browser.value(column) == sorted(before)
    assert browser.value(f"{table}.querySelectorAll('[aria-sort]').length") == 1


@needs_browser
def test_a_chart_shows_its_values_under_the_pointer_and_by_the_keyboard(pages, runs, browser):
    browser.open(pages["runs"])
    logged = {line["step"]: line["miou"] for line in read_metrics(runs / "alone") if "miou" in line}
    browser.value("document.querySelector('.chart').scrollIntoView({behavior: 'instant', block: 'center'})")
    box = browser.value("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
    tip = "document.getElementById('tip')"
    assert browser.value(f"{tip}.hidden")
    browser.move(box["right"] - 20, box["top"] + 50)  # near the last validation
    assert not browser.value(f"{tip}.hidden")
    assert f"alone {100 * logged[2]:.5g} at 2" in browser.value(f"{tip}.textContent")
    browser.move(2, 2)
    assert browser.value(f"{tip}.hidden")
    browser.value("document.querySelector('.chart').focus()")
    browser.press("ArrowLeft")
    assert f"alone {100 * logged[1]:.5g} at 1" in browser.value(f"{tip}.textContent")
    browser.press("Escape")
    assert browser.value(f"{tip}.hidden")


@needs_browser
def test_light_and_dark_follow_the_reader_and_can_be_read(pages, browser):
    def contrast():
        """WCAG's ratio of the text's and the page's luminance."""
        find = "getComputedStyle(document.querySelector('section')).{}.match(/[\\d.]+/g).slice(0, 3).map(Number)"
        luminances = []
        for name in ("color", "backgroundColor"):
            rgb = np.array(browser.value(find.format(name))) / 255
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
        return luminances[0] < luminances[1], (max(luminances) + 0.05) / (min(luminances) + 0.05)

    browser.open(pages["runs"], dark=False)
    is_light, ratio = contrast()
    assert is_light
    assert ratio > 7
    browser.open(pages["runs"], dark=True)
    is_light, ratio = contrast()
    assert not is_light
    assert ratio > 7


@needs_browser
def test_hostile_names_are_text(pages, browser):
    browser.errors.clear()
    browser.open(pages["hostile"])
    assert browser.value("document.title") == f"Report: {HOSTILE}"
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.querySelectorAll('img[src=x], b:not(.track b)').length") == 0
    assert browser.value(f"document.body.textContent.split({json.dumps(HOSTILE)}).length") > 8
    assert browser.errors == []


def test_hostile_names_are_escaped(pages):
    text = pages["hostile"].read_text()
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;document.title=&#39;taken&#39;&lt;/script&gt;" in text


def test_the_page_needs_no_network_and_is_small(pages):
    for page in pages.values():
        text = page.read_text()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert "default-src 'none'" in text
        assert len(text) < 5e6


def test_intervals_and_paired_differences_over_the_seeds(pages):
    """Student's t with one degree of freedom is 12.706: 51 +- 12.706 x 1.41 / 1.41, and gains of 4 and 6."""
    text = pages["comparison"].read_text()
    assert "51.00 ± 12.71" in text
    assert "56.00 ± 25.41" in text
    assert "+5.00 ± 12.71 n.s." in text
    assert "seed(s) 3, 12" in text


def test_a_comparison_shows_the_lowest_seed_of_each_method_the_student_alone_first(runs, tmp_path):
    folder = comparison_of(runs, tmp_path / "compared")
    shown = [(run.title, run.folder.name) for run in read_runs(folder)]
    assert shown == [("student alone", "seed_3"), ("hmkd", "seed_3")]
    (folder / "result.json").unlink()
    unfinished = read_runs(folder)
    assert [run.folder.parent.name for run in unfinished] == ["student_alone", "hmkd"]
    assert unfinished[0].title == "student alone"
    assert "no result.json yet" in unfinished[0].notes[0]
    text = report(tmp_path / "out", folder, runs / "alone", comparison_of(runs, tmp_path / "other"))
    rows = [line.split(" |")[0] for line in (tmp_path / "out" / "table.md").read_text().splitlines()[2:]]
    assert rows[1:6] == [
        "| compared/student alone",
        "| compared/hmkd",
        "| alone",
        "| other/student alone",
        "| other/hmkd",
    ]
    assert "compared/student alone: " in text


@pytest.mark.parametrize("log", [None, "", '{"step": 1, "lo', "no json\n"])
def test_a_run_that_was_killed_in_its_first_step_is_shown_and_said(runs, tmp_path, log):
    (tmp_path / "killed").mkdir()
    shutil.copy(runs / "alone" / "config.py", tmp_path / "killed")
    if log is not None:
        (tmp_path / "killed" / "metrics.jsonl").write_text(log)
    text = report(tmp_path / "out", tmp_path / "killed")
    assert "its log is empty" in text
    assert "killed: it has saved no network yet" in text
    assert "at step 0 of 2" in text
    assert all(f"<h3>{name}</h3>" in text for name in SECTIONS)
    assert "not measured" in (tmp_path / "out" / "table.md").read_text()


def test_a_run_that_still_goes_shows_its_best_network_so_far(runs, tmp_path):
    shutil.copytree(runs / "distilled", tmp_path / "run")
    (tmp_path / "run" / "student.safetensors").unlink()
    with open(tmp_path / "run" / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "loss"')  # it writes just now
    text = report(tmp_path / "out", tmp_path / "run")
    assert "it is not finished: its network is that of best.pt" in text
    assert "at step 2 of 2" in text
    assert read_metrics(tmp_path / "run") == read_metrics(runs / "distilled")


def test_a_picture_that_is_missing_or_damaged_is_left_out_and_named(runs, streets, tmp_path):
    shutil.copytree(streets, tmp_path / "data")
    shutil.copytree(runs / "alone", tmp_path / "run")
    config = tmp_path / "run" / "config.py"
    config.write_text(config.read_text().replace(str(streets), str(tmp_path / "data")))
    pictures = sorted((tmp_path / "data" / "val").glob("*.png"))
    pictures[0].unlink()
    pictures[2].write_bytes(b"no picture")
    text = report(tmp_path / "out", tmp_path / "run", "--images", "1")
    named = f"measured now: {pictures[0].stem}, {pictures[2].stem}"
    assert f"2 of 5 images cannot be read and are left out of what was {named}" in text
    assert (tmp_path / "out" / "panel.png").is_file()
    shutil.rmtree(tmp_path / "data")
    text = report(tmp_path / "gone", tmp_path / "run")
    assert "the validation set cannot be read, so nothing can be measured" in text
    assert not (tmp_path / "gone" / "panel.png").exists()
    assert (tmp_path / "gone" / "curves.png").is_file()


def test_images_that_are_too_small_for_the_network_are_said(runs, tmp_path):
    shutil.copytree(runs / "alone", tmp_path / "run")
    config = tmp_path / "run" / "config.py"
    config.write_text(config.read_text().replace("'scales': (1.0,)", "'scales': (0.25,)"))
    text = report(tmp_path / "out", tmp_path / "run")
    assert "nothing can be measured: " in text
    assert "12 x 16 at scale 0.25; the network needs at least" in text
    assert "No network was measured" in text


def test_the_figures_are_those_of_eval(runs):
    source = str(runs / "distilled" / "config.py")
    config = load_config(source, Experiment)
    dataset = build_split(config, source, "val")
    network, _ = build_student(config, source, dataset.class_names, pretrained=False)
    load_trained(network, read_weights(runs / "distilled" / "student.safetensors"), dataset.class_names)
    subjects = {"it": Subject(network, config, CPU), "twin": Subject(network, config, CPU, teacher="it")}
    scores, unreadable = measure(dataset, subjects)
    expected = evaluate(network, dataset, device=CPU, progress=False, **config.eval.protocol)
    assert unreadable == {}
    assert scores["it"].metrics.confusion_matrix == expected.confusion_matrix
    assert scores["it"].metrics.miou == expected.miou
    assert list(scores["it"].images) == dataset.names
    # A student and its equal agree everywhere.
    assert scores["twin"].differs.sum() == 0
    labelled = np.sum(expected.confusion_matrix)
    right = np.trace(expected.confusion_matrix)
    void = sum(int((dataset.load(i)[1] == 255).sum()) for i in range(len(dataset)))
    assert scores["twin"].kinds.tolist() == [right, 0, 0, 0, labelled - right, void]


def test_the_kinds_of_agreement():
    label = torch.tensor([[0, 0, 0, 0, 255]], dtype=torch.uint8)
    student = torch.tensor([[0, 1, 0, 1, 0]], dtype=torch.uint8)
    teacher = torch.tensor([[0, 0, 1, 2, 0]], dtype=torch.uint8)
    names = list(KINDS)

    def kinds(teacher):
        return [names[kind] for kind in kinds_of_pixels(student, teacher, label)[0]]

    assert kinds(teacher) == ["right", "wrong, teacher right", "right, teacher wrong", "both wrong", "void"]
    assert kinds(None) == ["right", "wrong, no teacher", "right", "wrong, no teacher", "void"]


def test_pictures_get_smaller_until_they_fit(runs, tmp_path, monkeypatch):
    def pictures(limit):
        monkeypatch.setattr(part, "LIMIT", limit)
        text = report(tmp_path / f"{limit:g}", runs / "alone")
        found = [src.split('"')[0] for src in text.split('src="data:image/webp;base64,')[1:]]
        return sum(map(len, found))

    whole = pictures(1e9)
    tables = part.CELL * (11 * 11 + 8 * 11 + 5)  # one network, 11 classes, 5 images
    assert whole / 4 < pictures(tables + whole / 2) <= whole / 2


def test_the_time_of_a_run_leaves_out_the_pause_before_it_was_resumed(runs, tmp_path):
    shutil.copy(runs / "alone" / "config.py", tmp_path)
    day = "2026-01-01"
    (tmp_path / "train.log.1").write_text(
        f"{day} 10:00:00,000 work_dirs/x: 2 process(es) on cuda, bf16; new run\n{day} 10:10:00,500 step 1\nno time\n"
    )
    (tmp_path / "train.log").write_text(
        f"{day} 10:20:00,500 step 2\n{day} 23:00:00,000 work_dirs/x: 4 process(es) on cuda, bf16; resumed\n"
        f"{day} 23:01:00,000 step 3\n"
    )
    run = read_run("x", tmp_path)
    assert run.seconds == 20 * 60 + 0.5 + 60
    assert (run.processes, run.device) == (4, "cuda")
    assert run.cost == pytest.approx(4 * run.seconds / 3600)


def test_a_line_chart_places_its_points_on_the_axes():
    points = [(step, step / 10) for step in range(1001)] + [(1001, math.nan)]
    chart = line_chart("loss", {"run": points, "empty": []}, {"run": style(8), "empty": style(0)}, {"teacher": 50})
    shown = chart["points"]
    assert len(shown) == 240
    assert shown[0]["t"] == "run 0 at 0"
    assert shown[-1]["t"] == "run 100 at 1000"
    xticks, yticks = ({text: place for place, text in chart[name]} for name in ("xticks", "yticks"))
    assert (shown[0]["x"], shown[0]["y"]) == (xticks["0"], yticks["0"])
    assert (shown[-1]["x"], shown[-1]["y"]) == (xticks["1000"], yticks["100"])
    assert chart["levels"] == [("teacher", pytest.approx((yticks["0"] + yticks["100"]) / 2, abs=0.1))]
    assert chart["lines"][0]["dashes"] == "7 4"  # the eighth colour is the first again, with other dashes
    assert line_chart("loss", {"run": []}, {}, {})["points"] == []
