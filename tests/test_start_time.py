"""The first prompt and the help appear at once: nothing is imported before it is needed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from llm_lab.wizard.home import menu_question

HEAVY = {"torch", "transformers", "trl", "datasets", "numpy", "pandas", "accelerate", "peft", "tokenizers", "pyarrow"}
SLOW = {"pydantic", "yaml", "psutil", "llm_lab.events", "llm_lab.job", "llm_lab.recipe.fields", "llm_lab.wizard.menu"}
SCREENS = {"prompt_toolkit", "questionary", "rich"}
MODULES = 'print("\\nMODULES", *sorted({*sys.modules, *(name.partition(".")[0] for name in sys.modules)}))'
CPU = 'print("\\nSECONDS", time.process_time())'
TO_A_PROMPT = f"""
import sys, time
from prompt_toolkit.application import Application
from llm_lab import cli
sys.stdin.isatty = sys.stdout.isatty = lambda: True
def stop(self, **options):
    {MODULES}
    {CPU}
    sys.exit(0)
Application.run = stop
cli.main(sys.argv[1:])
"""
LIBRARIES = f"""
import sys, time
import prompt_toolkit.application, questionary, rich.console, rich.text, rich.theme
{CPU}
"""
HELP = f"""
import contextlib, sys
from llm_lab import cli
for words in (["--help"], ["run", "--help"]):
    with contextlib.suppress(SystemExit):
        cli.main(words)
{MODULES}
"""


def output_of(program: str, *words: str) -> str:
    """Run a program in a new process with compiled modules, as users have from the second start on."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": "compiled"}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def modules_in(output: str) -> set[str]:
    return set(output.rpartition("MODULES")[2].partition("\n")[0].split())


def seconds_in(output: str) -> float:
    return float(output.rpartition("SECONDS")[2])


def test_the_first_prompt_needs_little_more_than_the_libraries_that_draw_it(finished_run):
    """With a run in the folder; measured in CPU time, in which both take longer on a busy machine."""
    wizard = output_of(TO_A_PROMPT)
    modules = modules_in(wizard)
    assert modules >= SCREENS
    assert not modules & (HEAVY | SLOW)
    fastest = min(seconds_in(wizard), seconds_in(output_of(TO_A_PROMPT)))
    libraries = min(seconds_in(output_of(LIBRARIES)) for _ in range(2))
    assert fastest < 2.2 * libraries, f"{fastest:.2f} s of CPU, the libraries {libraries:.2f} s"


def test_a_chat_prompts_before_anything_is_imported_that_its_model_needs(finished_run):
    modules = modules_in(output_of(TO_A_PROMPT, "chat", "tiny"))
    assert "llm_lab.terminal.chat_prompt" in modules
    assert not modules & (HEAVY | {"pydantic"})


def test_help_imports_neither_the_libraries_of_screens_nor_the_recipes(in_tmp_path):
    modules = modules_in(output_of(HELP))
    assert "llm_lab.cli" in modules
    assert not modules & (HEAVY | SLOW | SCREENS)


def test_five_hundred_runs_do_not_delay_the_home_screen(finished_run):
    source = Path("checkpoints/tiny")
    facts = json.loads((source / "run.json").read_text())
    for number in range(500):
        run = Path(f"checkpoints/run-{number}")
        (run / "model").mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({**facts, "name": run.name, "created_at": 1e9 + number}))
        shutil.copy(source / "model" / "config.json", run / "model")
    times = []
    for _ in range(3):  # other work on the machine makes the CPU slower, so the best counts
        begin = time.process_time()
        menu_question()
        times.append(time.process_time() - begin)
    assert min(times) < 0.3, f"{min(times):.2f} s of CPU for the home screen"
