"""Equal revisions are found equal, and a changed factor is found at its first step."""

import operator
import re
import shutil
import subprocess

import pytest

from scripts import compare_losses
from scripts.compare_losses import differences, main
from tests.conftest import ROOT

PARTS = ("train_kd.py", "configs", "datasets", "engine", "losses", "models", "utils")


def git(folder, *arguments):
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The code in two commits: 'first', and 'second', in which the cross-entropy's factor is 1.5 instead of 1."""
    root = tmp_path_factory.mktemp("repository")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, root / part)
    git(root, "init", "--quiet")
    (root / ".gitignore").write_text("__pycache__/\n")
    for name, factor in (("first", "1.0"), ("second", "1.5")):
        task = (root / "losses/task.py").read_text()
        assert task.count('{"task": 1.0}') == 1
        (root / "losses/task.py").write_text(task.replace('{"task": 1.0}', f'{{"task": {factor}}}'))
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", name)
        git(root, "tag", name)
    return root


@pytest.fixture
def compare(repository, monkeypatch, capsys):
    """Runs the command on ``repository``; gives its exit code and the lines that it prints."""
    monkeypatch.setattr(compare_losses, "ROOT", repository)

    def run(*arguments):
        return main([*arguments, "--steps", "2"]), capsys.readouterr().out.splitlines()

    return run


def test_a_revision_equals_itself_in_the_working_tree(repository, compare, experiments):
    """The tree is at 'second': with its change taken back it is 'first' again."""
    git(repository, "checkout", "first", "--", "losses/task.py")
    code, lines = compare("first", ".", experiments["hmkd"])
    git(repository, "checkout", "second", "--", "losses/task.py")
    assert code == 0
    found = re.fullmatch(r"equal: all \d+ figures \((.*)\), and all \d+ weights after the last step", lines[-1])
    assert {"loss", "task", "feature", "logit"} <= set(found[1].split(", "))


def test_a_changed_factor_is_found_with_step_term_and_both_values(compare, experiments):
    code, lines = compare("first", "second", experiments["alone"])
    assert code == 1
    assert re.fullmatch(r"\d+ of \d+ figures differ: loss, .*task", lines[-3])
    found = re.fullmatch(r"first difference: step 1, loss: first (\S+), second (\S+)", lines[-2])
    assert float(found[2]) == pytest.approx(1.5 * float(found[1]), rel=1e-6)
    assert re.match(r"\d+ of \d+ weights differ after the last step; the first: student\.", lines[-1])


def test_what_cannot_be_compared_is_named(compare, experiments):
    with pytest.raises(SystemExit, match="error: revision 'third' cannot be read from"):
        compare("third", ".", experiments["alone"])
    with pytest.raises(SystemExit, match=r"train\.epochs: unknown key"):
        compare(".", ".", experiments["alone"], "--cfg-options", "train.epochs=3")


def test_a_figure_that_one_side_lacks_is_a_difference():
    one, other = {(1, "task"): 0.5, (2, "task"): None}, {(2, "task"): None, (2, "kd"): 0.1}
    assert differences(one, other, operator.eq) == [(1, "task"), (2, "kd")]
