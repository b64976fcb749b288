import io
import subprocess

import pytest
from tqdm import tqdm

from scripts.comparison import jobs
from scripts.comparison.jobs import Job, alone_in, run_jobs


def shell(folder, name, script):
    return Job(name, ["sh", "-c", script], folder / f"{name}.result", folder / f"{name}.log")


def test_what_is_done_is_not_repeated_and_a_failure_stops_no_other(tmp_path):
    (tmp_path / "done.result").touch()
    commands = [
        shell(tmp_path, "done", "exit 3"),
        shell(tmp_path, "bad", "echo first; echo the reason; exit 1"),
        shell(tmp_path, "good", f"touch {tmp_path}/good.result"),
    ]
    with alone_in(tmp_path) as lock, pytest.raises(ValueError, match=r"1 of 2 failed.*\n  bad: the reason .*bad\.log"):
        run_jobs(commands, 1, lock)
    assert (tmp_path / "good.result").is_file()


def test_a_bar_shows_the_time_left_and_what_was_found(tmp_path, monkeypatch):
    """Of four jobs, the first was half done before."""
    now, share = [0.0], {"a": 0.5, "b": 0.0, "c": 0.0, "d": 0.0}
    monkeypatch.setattr(jobs.time, "perf_counter", lambda: now[0])
    four = [Job(name, [], tmp_path, tmp_path, lambda name=name: (share[name], ", mIoU 50.00%")) for name in share]
    monkeypatch.setattr(jobs, "progress_bar", lambda *_, active: tqdm(total=4, file=io.StringIO()))
    bar = jobs.JobBar(four)
    assert bar.left() == ""
    now[0] = 30.0
    assert bar.end(four[0], "done, mIoU 50.00%") == "done, mIoU 50.00%, 0:03:00 left"  # 3 of 0.5 in 30 s
    share["b"] = 0.5
    bar.draw()
    assert bar.bar.postfix == "a: done, mIoU 50.00%, 0:01:15 left"  # 2.5 of 1 in 30 s
    for job in four[1:]:
        text = bar.end(job, "failed")
    assert (text, bar.bar.n) == ("failed", 4)


def test_as_many_at_a_time_as_asked_each_on_its_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    # Each waits for the other: they end only side by side.
    one, other = (
        shell(
            tmp_path, a, f"echo $CUDA_VISIBLE_DEVICES; touch {tmp_path}/{a}; while ! [ -e {tmp_path}/{b} ]; do :; done"
        )
        for a, b in ("xy", "yx")
    )
    with alone_in(tmp_path) as lock:
        run_jobs([one, other], 2, lock)
    assert [job.log.read_text() for job in (one, other)] == ["4\n", "7\n"]


def test_the_running_are_told_to_stop_and_waited_for(tmp_path, monkeypatch):
    job = shell(
        tmp_path,
        "saves",
        f"trap 'touch {tmp_path}/saved; exit 143' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done",
    )

    def interrupt(_seconds):
        if (tmp_path / "up").is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, "sleep", interrupt)
    with alone_in(tmp_path) as lock, pytest.raises(KeyboardInterrupt):
        run_jobs([job], 1, lock)
    assert (tmp_path / "saved").is_file()


def test_a_run_that_outlives_its_comparison_keeps_the_folder(tmp_path):
    with alone_in(tmp_path) as lock, pytest.raises(ValueError, match="works in this folder"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path) as lock:
        child = subprocess.Popen(["sleep", "30"], pass_fds=[lock])
    with pytest.raises(ValueError, match="works in this folder"), alone_in(tmp_path):
        pass
    child.kill()
    child.wait()
    with alone_in(tmp_path):
        pass
