"""The pages name only what exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from losses import METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("pretrained/*.md")])
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def expand(name):
    """``'a{b,c}'`` -> ['ab', 'ac'], as a shell does."""
    found = re.search(r"\{([^{}]*)\}", name)
    if not found:
        return [name]
    return [full for part in found[1].split(",") for full in expand(name[: found.start()] + part + name[found.end() :])]


@pages
def test_every_link_leads_to_a_page_and_a_heading_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


@pages
def test_every_file_of_the_repository_that_is_named_exists(page):
    named = r"(?<![\w/.-])(?:scripts|configs|tests|losses|models|engine|datasets|utils)/[\w/.{},*-]*\w"
    for name in re.findall(named, re.sub(r"github\.com/\S+|https?://\S+", "", page.read_text())):
        if "mine" not in name and "NAME" not in name:  # a reader's own files
            for path in expand(name):
                assert list(ROOT.glob(path.removesuffix("..."))), path


@pages
def test_every_test_that_is_named_exists(page):
    text = re.sub(r"(tests/[\w/]+\.py)(::\w+[^|]*?)`, `::", r"\1\2`, `\1::", page.read_text())
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert re.search(rf"^def {name}", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


@pages
def test_every_python_example_parses_and_imports_what_exists(page):
    for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_every_method_has_its_row_and_its_section():
    readme, methods = ((ROOT / name).read_text() for name in ("README.md", "docs/methods.md"))
    for name in METHODS:
        assert f"| `{name}` |" in readme
        assert f"\n## {name}: " in methods
    for config in ROOT.glob("configs/_base_/methods/*.py"):
        assert f"| `{config.stem}` |" in methods
