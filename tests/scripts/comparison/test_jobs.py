import re
import subprocess
import sys

import pytest

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


def test_a_bar_shows_what_is_done_the_time_left_and_what_was_found(tmp_path, monkeypatch, capsys):
    """The second job is half done while it runs, so that 1.5 of 2 are done."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    one, two = (shell(tmp_path, name, f"sleep {wait}") for name, wait in (("one", 0), ("two", 3)))
    share = [0.0]
    two = two._replace(look=lambda: (share[0], ""))

    def found():
        share[0] = 0.5
        return 0.0, ", mIoU 50.00%"

    with alone_in(tmp_path) as lock:
        run_jobs([one._replace(look=found), two], 1, lock)
    said = capsys.readouterr()
    assert "one: done, mIoU 50.00%\n" in said.out
    assert re.search(r"runs:  75%\|.*\| 1.5/2 \[\d\d:\d\d, 00:0\d left, one: done, mIoU 50.00%\]", said.err)


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
