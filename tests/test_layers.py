"""The layers: which folder may import which, no import cycles, and nothing heavy before the menu."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "llm_lab"
NUMBERS = {"errors", "limits", "events", "safe_text", "estimate", "recipe"}
TOOLS = NUMBERS | {"model", "hf", "data", "optim", "rewards", "runs"}
ALL = TOOLS | set("training chat evaluation export stages looking studies job runner wizard terminal web".split())
MAY_IMPORT = {
    "estimate": {"errors", "safe_text"},
    "recipe": {"errors", "safe_text", "estimate"},
    "model": set(),
    "hf": {"errors", "limits", "safe_text", "estimate", "recipe", "model"},
    "data": NUMBERS | {"hf"},
    "optim": {"errors", "recipe", "hf"},
    "rewards": NUMBERS | {"hf", "data"},
    "runs": NUMBERS,
    "training": TOOLS,
    "chat": TOOLS | {"training"},
    "evaluation": TOOLS | {"training", "chat"},
    "export": TOOLS | {"training", "evaluation"},
    "stages": TOOLS | {"training", "chat", "evaluation", "export"},
    "looking": TOOLS | {"training", "evaluation"},
    "studies": TOOLS | {"training", "chat", "evaluation", "looking", "job", "runner"},
    "wizard": TOOLS | {"training", "evaluation", "export", "looking", "studies", "job"},
    "terminal": TOOLS | {"training", "chat", "evaluation", "export", "looking", "studies", "job", "runner", "wizard"},
    "web": TOOLS | {"training", "chat", "evaluation", "export", "looking", "studies", "job", "runner", "wizard"},
    "commands": ALL,
}
FILES_BESIDE_CODE = {"studies": {"experiments"}, "web": {"static", "templates"}}
MODULES = {
    "errors",
    "limits",
    "events",
    "safe_text",
    "job",
    "runner",
    "run_result",
    "python_api",
    "cli",
}  # files directly in llm_lab/
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "pandas", "pyarrow")


def modules() -> dict[str, Path]:
    """Return our modules by dotted name."""
    found = {}
    for file in PACKAGE.glob("**/*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def modules_imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Return our modules that a file imports, including those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            inner = {f"{module}.{name.name}" for name in node.names} & known.keys()
            found |= inner or {module}
    return {name for name in found if name in known}


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_imports_only_the_layers_below_it(layer):
    known = modules()
    for file in (PACKAGE / layer).glob("**/*.py"):
        beyond = {layer_of(name) for name in modules_imported(file, known)} - MAY_IMPORT[layer] - {layer, ""}
        assert not beyond, f"{file.relative_to(PACKAGE)} imports {beyond}"


def test_there_are_no_import_cycles():
    known = modules()
    imports = {name: modules_imported(file, known) - {name, "llm_lab"} for name, file in known.items()}
    waiting = dict(imports)
    while free := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"these files are in circles, or above one: {sorted(waiting)}"


def test_every_folder_is_a_layer_without_folders_of_its_own():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == MAY_IMPORT.keys()
    for folder in folders:
        inner = {path.name for path in (PACKAGE / folder).iterdir() if path.is_dir()} - {"__pycache__"}
        assert inner == FILES_BESIDE_CODE.get(folder, set())
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == MODULES


def test_the_package_has_at_most_366_files():
    assert len(modules()) <= 366


def test_two_modules_share_a_name_only_as_the_two_halves_of_a_stage():
    by_name: dict[str, set[str]] = {}
    for module in modules():
        layer = layer_of(module)
        if layer and module.count(".") == 2:
            by_name.setdefault(module.rsplit(".", 1)[1], set()).add(layer)
    shared = {name: layers for name, layers in by_name.items() if len(layers) > 1}
    halves = {name for name, layers in shared.items() if layers == {"recipe", "stages"}}
    assert not {name: layers for name, layers in shared.items() if name not in halves}


def test_the_model_code_can_be_copied_as_it_is():
    for file in (PACKAGE / "model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1
                assert not (node.module or "").startswith("llm_lab")


def test_the_menu_opens_without_any_heavy_library():
    names = ["llm_lab.cli", "llm_lab.runner", "llm_lab.runs.processes", "llm_lab.runs.report"]
    light = [m for m in modules() if layer_of(m) in ("recipe", "estimate", "wizard", "terminal")]
    program = f"""
import importlib, sys
for module in {names + sorted(light)}:
    importlib.import_module(module)
    found = [name for name in {HEAVY} if name in sys.modules]
    assert not found, f"{{module}} imports {{found}}"
from llm_lab.recipe.resolve import resolve
resolve({{"stage": "pretrain", "device": "auto", "data": [{{"path": "builtin:stories"}}]}})
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_telemetry_is_off_before_anything_is_imported():
    program = "import os, llm_lab; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "1"
