"""The documents say what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_current():
    stale = [file.name for file, text in generator().pages().items() if file.read_text(encoding="utf-8") != text]
    assert not stale, f"run `python docs/generate.py`: {stale}"


def test_every_command_of_the_readme_exists():
    from llm_lab.cli import _parser

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^llm-lab ([^#\n>]+)", readme, flags=re.MULTILINE)
    assert len(commands) >= 10
    for line in commands:
        import shlex

        _parser().parse_args(shlex.split(line))


def test_every_file_the_readme_links_to_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", ["setup", "demo", "lab", "test", "test-all", "bench"])
def test_the_makefile_has_every_target_that_the_documents_name(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
