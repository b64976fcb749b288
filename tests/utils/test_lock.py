import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from utils.files import LOCK, lock_work_dir

forked = multiprocessing.get_context("fork")


def hold(folder, ready):
    with lock_work_dir(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def held(tmp_path):
    """A folder in which another process runs, and that process."""
    ready = forked.Event()
    process = forked.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    yield tmp_path, process
    process.kill()
    process.join()


def test_the_second_run_is_refused_with_host_and_process_of_the_first(held):
    folder, process = held
    expected = rf"another run works in this folder \(process {process.pid} on {socket.gethostname()}\)"
    with pytest.raises(ValueError, match=expected), lock_work_dir(folder):
        pass
    assert (folder / LOCK).is_file()


def test_a_folder_that_cannot_be_made_is_named():
    expected = "--work-dir /proc/runs/a cannot be created .No such file"
    with pytest.raises(ValueError, match=expected), lock_work_dir(Path("/proc/runs/a")):
        pass


def test_a_dead_runs_lock_is_recognised_and_its_unfinished_files_go(held, capsys):
    folder, process = held
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder / f".last.pt.{process.pid}.tmp").write_bytes(b"half a checkpoint")
    (folder / "last.pt").write_bytes(b"a checkpoint")
    with lock_work_dir(folder):
        assert f"process {os.getpid()} on" in (folder / LOCK).read_text()
    assert f"the last run in this folder (process {process.pid} on" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["last.pt"]


def test_the_lock_ends_with_its_process_though_a_child_lives_on(tmp_path):
    """As a loader's worker may, for some seconds after its run was killed."""

    def run(child):
        with lock_work_dir(tmp_path):
            worker = forked.Process(target=signal.pause)
            worker.start()
            child.put(worker.pid)
            signal.pause()

    child = forked.SimpleQueue()
    process = forked.Process(target=run, args=(child,))
    process.start()
    worker = child.get()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        with lock_work_dir(tmp_path):
            os.kill(worker, 0)  # is alive
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_run_that_ends_leaves_no_lock_and_no_empty_folder(tmp_path, error):
    folder = tmp_path / "made" / "here"
    try:
        with lock_work_dir(folder):
            if error:
                raise error
    except ValueError:
        pass
    assert not folder.exists()
    with lock_work_dir(folder):
        (folder / "last.pt").touch()
    assert [path.name for path in folder.iterdir()] == ["last.pt"]


def test_a_file_is_no_work_dir(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"--work-dir .*file is a file; expected a folder"),
        lock_work_dir(tmp_path / "file"),
    ):
        pass
