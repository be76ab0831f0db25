"""The layers: who may import whom, and what must not be imported for the menu to stand at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "llm_lab"
MAY_IMPORT = {
    "recipe": set(),
    "plan": {"recipe"},
    "ui": {"recipe", "plan", "runs"},
    "model": set(),
    "hf": {"model", "recipe"},
    "data": {"recipe"},
    "optim": {"recipe"},
    "rewards": {"recipe", "hf"},
    "runs": {"recipe"},
    "stages": {"recipe", "plan", "model", "hf", "data", "optim", "rewards", "runs"},
}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "pandas", "pyarrow")


def layers_imported(file: Path) -> set[str]:
    """Return our layers (or top-level modules) that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module} if module != "llm_lab" else {f"llm_lab.{name.name}" for name in node.names}
    return {name.split(".")[1] for name in found if name.startswith("llm_lab.")} - {"__version__"}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_imports_only_those_below_it(layer):
    for file in (PACKAGE / layer).glob("**/*.py"):
        beyond = layers_imported(file) - MAY_IMPORT[layer] - {layer}
        assert not beyond, f"{file.relative_to(PACKAGE)} imports {beyond}"


def test_every_folder_is_a_layer_without_folders_of_its_own():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(MAY_IMPORT)
    inner = [path for path in PACKAGE.glob("*/*/") if path.is_dir() and path.name != "__pycache__"]
    assert inner == []


def test_nothing_imports_the_commands_and_only_the_commands_and_main_import_the_runner():
    for file in PACKAGE.glob("**/*.py"):
        upward = layers_imported(file) & {path.stem for path in PACKAGE.glob("*.py")}
        if file.parent != PACKAGE:
            assert not upward, f"{file.relative_to(PACKAGE)} imports {upward}"


def test_the_model_code_can_be_copied_as_it_is():
    for file in (PACKAGE / "model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1
                assert not (node.module or "").startswith("llm_lab")


def test_the_menu_stands_without_any_heavy_library():
    modules = [
        "llm_lab.plan.resolve",
        "llm_lab.cli",
        "llm_lab.wizard_actions",
        "llm_lab.runner",
        "llm_lab.runs.processes",
        "llm_lab.runs.report",
    ]
    modules += [f"llm_lab.ui.{file.stem}" for file in sorted((PACKAGE / "ui").glob("*.py")) if file.stem != "__init__"]
    program = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    found = [name for name in {HEAVY} if name in sys.modules]
    assert not found, f"{{module}} imports {{found}}"
from llm_lab.plan.resolve import resolve
resolve({{"stage": "pretrain", "device": "auto", "data": [{{"path": "builtin:stories"}}]}})
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_telemetry_is_off_before_anything_is_imported():
    program = "import os, llm_lab; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "1"
