"""The import rules of the folders: none imports upwards, and the components do not know the config."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("utils", "models", "losses", "datasets", "configs", "engine", "scripts", "train_kd", "eval", "tests")
# What each folder may import of the project beside itself.
ALLOWED = {
    "utils": set(),
    "models": {"utils.names"},
    "losses": {"utils.names", "models.base"},
    "datasets": {"utils.names"},
    "configs": {"utils.names", "utils.config", "models", "losses", "datasets"},
    "engine": {"utils", "models", "losses", "datasets", "configs.schema"},
}
# Only these read configs.
CONFIG_READERS = {"utils/config.py", "configs/schema.py"}
# These check files that may be damaged.
FILE_READERS = {"models/weights/metadata.py", "datasets/packed.py"}
# What training needs must not need the scripts; utils in particular needs no network and no data.
FOLDERS = (*ALLOWED, "scripts", "tests")


def imports(path: Path) -> set[str]:
    """Modules of any project that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_it_may(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = {name for name in imports(path) if within(name, set(ROOMS) - {room})}
        wrong = {name for name in foreign if not within(name, ALLOWED[room])}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_there_is_no_import_circle():
    """No chain of imports at the top of modules leads back to where it began."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("*/**/*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items() if name.split(".")[0] in ALLOWED}
    edges = {}
    for name, path in modules.items():
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        found = {f"{node.module}.{alias.name}" for node in top for alias in node.names}
        edges[name] = {target if target in modules else target.rpartition(".")[0] for target in found} & modules.keys()

    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        assert name not in chain, " -> ".join((*chain[chain.index(name) :], name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*chain, name))
            done.add(name)

    for name in modules:
        visit(name, ())


def test_only_the_schema_and_the_reader_know_the_config_libraries():
    for room in ALLOWED:
        for path in (ROOT / room).rglob("*.py"):
            file, names = str(path.relative_to(ROOT)), {name.split(".")[0] for name in imports(path)}
            assert "mmengine" not in names or file in CONFIG_READERS, f"{path} reads the config"
            assert "pydantic" not in names or file in CONFIG_READERS | FILE_READERS, f"{path} reads the config"


def test_no_device_is_hard_coded_and_no_path_is_edited():
    for room in (*ALLOWED, "scripts"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert ".cuda()" not in text, path
            assert "sys.path" not in text, path
            assert "import *" not in text, path


def test_no_module_needs_posix_to_be_imported():
    posix = {"fcntl", "resource", "pwd", "grp", "termios"}
    for room in (*ALLOWED, "scripts"):
        for path in (ROOT / room).rglob("*.py"):
            top = ast.parse(path.read_text()).body
            found = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
            assert not found & posix, f"{path.relative_to(ROOT)} imports {found & posix}"


def test_every_code_folder_is_a_package():
    for room in FOLDERS:
        for path in (ROOT / room).rglob("*.py"):
            if room != "configs" or path.parent == ROOT / room:
                assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py"


def test_values_that_all_rooms_share_are_defined_once():
    """VOID and OUTSIDE, the nearest name, the lock, and the start of a loader's worker."""
    marks = {"get_close_matches": "utils/names.py", "flock": "utils/files.py", "setNumThreads": "datasets/__init__.py"}
    for room in ALLOWED:
        for path in (ROOT / room).rglob("*.py"):
            place, text = str(path.relative_to(ROOT)), path.read_text()
            for mark, home in marks.items():
                assert mark not in text or place == home, f"{place} has its own {mark}"
            names = {
                target.id
                for node in ast.parse(text).body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            assert place == "utils/names.py" or not names & {"VOID", "OUTSIDE"}, f"{place} defines its own void"
