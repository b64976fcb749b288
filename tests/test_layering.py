"""The import rules: models, losses, datasets and utils know nothing of each other's insides, nor of the config."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("models", "losses", "datasets", "utils", "configs", "scripts", "train_kd", "eval", "tests")
# What each room may import of the project beside itself.
ALLOWED = {
    "models": set(),
    "losses": {"models.base"},
    "datasets": set(),
    "utils": set(),
}


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in ROOMS}
    return {name for name in names if name.split(".")[0] in ROOMS}


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_it_may(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = {name for name in imports(path) if name.split(".")[0] != room}
        allowed = {name for name in foreign if any(f"{name}.".startswith(f"{a}.") for a in ALLOWED[room])}
        assert foreign == allowed, f"{path.relative_to(ROOT)} imports {sorted(foreign - allowed)}"


def test_only_the_entry_points_assemble():
    for room in ("models", "losses", "datasets", "utils"):
        for path in (ROOT / room).rglob("*.py"):
            assert not {"mmengine", "pydantic"} & {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [a.name for a in node.names] if isinstance(node, ast.Import)
                    else [node.module] if isinstance(node, ast.ImportFrom) else []
                )
            } or path.name == "config.py", f"{path} reads the config"  # fmt: skip


def test_no_device_is_hard_coded_and_no_path_is_edited():
    for room in ("models", "losses", "datasets", "utils", "configs", "scripts"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert ".cuda()" not in text, path
            assert "sys.path" not in text, path
            assert "import *" not in text, path


def test_every_code_folder_is_a_package():
    for room in ("models", "losses", "datasets", "utils", "configs", "scripts", "tests"):
        assert (ROOT / room / "__init__.py").is_file(), f"without {room}/__init__.py an installed {room} would win"
