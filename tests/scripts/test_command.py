import importlib

import pytest

from scripts._command import one_line_errors
from tests.conftest import ROOT

COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "command_parser(" in path.read_text())
COMMANDS.remove("_command")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_lines_of_the_docstring_and_examples(name, capsys):
    module = importlib.import_module(f"scripts.{name}")
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert module.__doc__.strip() in shown
    assert module.EXAMPLES.strip() in shown
    assert f"python scripts/{name}.py " in module.EXAMPLES


def test_all_commands_with_examples_are_known():
    assert {"compare", "download_pretrained", "export", "model_info", "predict", "report"} < set(COMMANDS)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.py: wrong key"), "error: a.py: wrong key"),
        (FileNotFoundError("a.py does not exist"), "error: a.py does not exist"),
        (KeyboardInterrupt(), "stopped by hand"),
    ],
)
def test_what_a_user_can_fix_ends_in_one_line(error, line):
    with pytest.raises(SystemExit) as stop, one_line_errors("stopped by hand"):
        raise error
    assert stop.value.code == line


def test_a_full_memory_is_told_from_a_bug():
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB\nIf reserved memory is ...")
    assert stop.value.code.endswith("smaller images or batches need less: CUDA out of memory. Tried to allocate 20 GiB")
    with pytest.raises(RuntimeError, match="a bug"), one_line_errors():
        raise RuntimeError("a bug")
