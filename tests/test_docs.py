"""The documents say what the code does."""

import importlib.util
import json
import re
from itertools import islice
from pathlib import Path

import pytest

from llm_lab.data.builtin import BUILTIN_EXAMPLES, builtin_documents
from llm_lab.recipe.registry import STAGES

ROOT = Path(__file__).resolve().parent.parent


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_current():
    pages = generator().pages()
    stale = [file.name for file, text in pages.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    assert not stale, f"run `python docs/generate.py`: {stale}"
    of_experiments = set((ROOT / "docs" / "experiments").glob("*.md"))
    assert of_experiments <= set(pages), "a page of an experiment that is gone"


def test_every_command_of_the_readme_exists():
    from llm_lab.commands.arguments import parse

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^llm-lab ([^#\n>]+)", readme, flags=re.MULTILINE)
    assert len(commands) >= 10
    for line in commands:
        import shlex

        parse(shlex.split(line))


def test_the_commands_and_files_of_the_page_on_scaling_are_valid():
    """The commands of launchers are checked by their own parsers; Slurm's and SkyPilot's files as shell and YAML."""
    import shlex
    import subprocess

    import yaml
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    from llm_lab.commands.arguments import parse

    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w*)\n(.*?)```", page, flags=re.DOTALL)
    scripts = [text for kind, text in blocks if kind != "yaml"]
    tasks = [yaml.safe_load(text) for kind, text in blocks if kind == "yaml"]
    assert [(task["num_nodes"], task["resources"]["accelerators"]) for task in tasks] == [(2, "H100:8")]
    scripts += [task[part] for task in tasks for part in ("setup", "run")]
    found = []
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for line in script.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("$resume", "--resume"))
            words = words[1:] if words[:1] == ["srun"] else words
            if words[:1] == ["llm-lab"]:
                parse(words[1:])
            elif words[:1] == ["torchrun"]:
                known = get_args_parser().parse_args([re.sub(r"\$\w+", "1", word) for word in words[1:]])
                assert (known.module, known.training_script) == (True, "llm_lab.cli")
                parse(known.training_script_args)
            elif words[:2] == ["accelerate", "launch"]:
                launched = launch_command_parser().parse_args(words[2:])
                assert (launched.module, launched.training_script) == (True, "llm_lab.cli")
                parse(launched.training_script_args)
            else:
                continue
            found.append(words[0])
    assert [found.count(name) for name in ("llm-lab", "torchrun", "accelerate")] == [4, 4, 1]
    for config in re.findall(r"configs/[\w-]+\.yaml", page):
        assert (ROOT / config).exists(), config


def test_every_file_the_readme_links_to_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_the_recorded_session_is_small_and_shows_a_training_and_a_reply():
    recording = (ROOT / "docs" / "images" / "wizard.svg").read_text(encoding="utf-8")
    assert len(recording.encode()) < 500_000
    for text in ("Train on my text", "my-stories.txt", "validation loss", "completion mode"):
        assert text in recording, text


@pytest.mark.parametrize("target", ["setup", "demo", "lab", "web", "test", "test-all", "bench", "recording"])
def test_the_makefile_has_every_documented_target(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


SMALL = [
    *("train.max_steps=4", "train.eval_steps=2", "train.save_steps=2", "train.logging_steps=1"),
    *("scheduler.warmup_steps=1", "samples.max_new_tokens=4", "validation.max_tokens=2000"),
]


def small_demo() -> list[str]:
    """The demo's own stages, each cut to two steps on the first rows of its data."""
    import yaml

    stages = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))["stages"]
    small = {"train.max_steps": 2, "train.eval_steps": 2, "train.logging_steps": 1, "scheduler.warmup_steps": 1}
    words = ["score.prompts=8", "score.max_completion_length=8"]
    for index, stage in enumerate(stages):
        if "train" in stage:
            words += [f"stages.{index}.{key}={value}" for key, value in small.items()]
            if stage["stage"] != "reward":
                words.append(f"stages.{index}.samples.max_new_tokens=4")
            if stage["stage"] in ("grpo", "ppo"):
                words.append(f"stages.{index}.{stage['stage']}.max_completion_length=8")
            write_first_rows(stage["data"][0], STAGES[stage["stage"]].examples, f"rows-{index}.jsonl")
            words.append(f"stages.{index}.data=[{{path: rows-{index}.jsonl}}]")
    return words


def write_first_rows(source: dict[str, str], kind: str, file: str) -> None:
    name = source["path"].removeprefix("builtin:")
    if kind == "text":
        rows, limit = ({"text": text} for text in builtin_documents(name)), 400
    else:
        rows, limit = BUILTIN_EXAMPLES[name](kind, source.get("split", "train")), 120
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in islice(rows, limit)), encoding="utf-8")


@pytest.fixture
def small_stories(tmp_path) -> str:
    """The first texts of the data of configs/stories.yaml, which test_the_python_of_the_readme_works reads in full."""
    write_first_rows({"path": "builtin:stories"}, "text", str(tmp_path / "stories.jsonl"))
    return f"data=[{{path: {tmp_path / 'stories.jsonl'}}}]"


def test_the_commands_of_the_readme_work_in_order(tmp_path, monkeypatch, capsys, small_stories, quick_verification):
    import shlex
    import shutil

    from llm_lab.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    Path("input.txt").write_text("To be, or not to be: that is the question.\n" * 200, encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^llm-lab ([^#\n>]+)", readme, flags=re.MULTILINE)
    assert lines[0].startswith("run configs/demo.yaml")
    for line in lines:
        words = shlex.split(line)
        if words[:2] in (["run", "configs/demo.yaml"], ["xray", "configs/demo.yaml"]):
            words += small_demo()
        elif words[0] == "run" and not {"--dry-run", "--resume"} & set(words):
            words = [word for word in words if not word.startswith("train.")] + SMALL
            words += [small_stories] if words[1] == "configs/stories.yaml" else []
        elif words[0] in ("sweep", "duel"):
            words.append("--dry-run")  # tests/studies runs some
        code = main(words)
        printed = capsys.readouterr()
        wanted = 3 if "gpu-124m" in line else 0  # tests run without a GPU
        assert code == wanted, f"{line}: {printed.err}"
    made = sorted(path.name for path in Path("checkpoints").iterdir())
    assert made == ["demo", "demo-ppo-gguf", "first-stories", "shakespeare"]


def test_the_python_of_the_readme_works(tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, flags=re.DOTALL)[1]
    small = ", ".join(repr(word) for word in SMALL)
    code = code.replace('"train.max_steps=100"', small)
    assert small in code
    code = code.replace("max_steps=50", "max_steps=2")
    scope: dict = {}
    exec(code, scope)
    assert scope["facts"]["status"] == "done"
    assert scope["model"].num_parameters() > 100_000
    assert len(scope["tokenizer"]) > 256


def test_every_question_shown_to_readers_is_in_words_that_the_demo_learns():
    from support.shown_questions import shape_of, shown_questions

    from llm_lab.data.arithmetic_world import world_examples

    learned = {shape_of(row["prompt"]) for row in world_examples("conversation", "homework", varied=True)}
    shown = shown_questions()
    assert len(shown) >= 2
    assert {question for question in shown if shape_of(question) not in learned} == set()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_answers_every_question_shown_to_readers(tmp_path, monkeypatch, capsys):
    import shutil

    from support.shown_questions import shown_questions

    from llm_lab.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    assert main(["run", "configs/demo.yaml", "device=cpu"]) == 0
    for question in shown_questions():
        start, found = map(int, re.findall(r"\d+", question))  # somebody has some things and finds more
        for model in ("checkpoints/demo", "checkpoints/demo/sft", "checkpoints/demo/grpo"):
            capsys.readouterr()
            assert main(["chat", model, "--prompt", question]) == 0
            answer = f"So {start} + {found} = {start + found}. The answer is {start + found}."
            assert answer in capsys.readouterr().out, f"{model}: {question}"
