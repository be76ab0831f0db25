"""The commands: what they print, where, and their exit codes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
import yaml
from conftest import tiny_recipe, write_text
from support.forked_command import ForkedCommand, run_forked
from support.post_runs import write_rows

from llm_lab.cli import function_of, main
from llm_lab.commands.argument_parser import commands_of
from llm_lab.commands.arguments import make_parser, parse
from llm_lab.commands.documents import Document
from llm_lab.errors import MachineError
from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.files import read_recipe_file

CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = [
    *sorted(CONFIGS.glob("*.yaml")),
    *(CONFIGS / "duels" / f"{name}.yaml" for name in ("nano", "micro", "optimizers")),
]


@pytest.fixture
def recipe(in_tmp_path) -> str:
    """A tiny recipe in a folder of its own."""
    write_text("text.txt")
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe(**{"train.max_steps": 4, "train.eval_steps": 2})))
    return "tiny.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_text("text.txt")
        Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe(**{"train.max_steps": 4, "train.eval_steps": 2})))
        assert main(["run", "tiny.yaml"]) == 0
    finally:
        os.chdir(before)
    return folder


def lab(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "llm_lab", *words], capture_output=True, text=True, **options)


def test_the_wizard_without_a_terminal_exits_with_2_and_names_run(in_tmp_path):
    done = lab(stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "llm-lab run RECIPE" in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_run_trains_and_saves_the_model(trained, capfd):
    assert (trained / "checkpoints/tiny/model/config.json").is_file()


def test_a_dry_run_of_several_processes_plans_for_them_and_starts_none(recipe, capsys):
    tokens = []
    for words in ([], ["--nproc", "2"]):
        assert main(["run", recipe, "--dry-run", "--json", *words]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["stages"][0]["estimate"]["tokens"])
    assert tokens[1] == 2 * tokens[0]
    assert main(["run", recipe, "--dry-run", "--nproc", "2", "train.distributed=fsdp"]) == 0
    assert "2, with fsdp: each process has a part of every weight" in capsys.readouterr().out
    assert not Path("checkpoints").exists()
    assert "WORLD_SIZE" not in os.environ
    assert main(["run", recipe, "--nproc", "0", "--dry-run"]) == 2


def test_a_dry_run_shows_the_plan_and_writes_nothing(recipe, capsys):
    assert main(["run", recipe, "--dry-run", "train.max_steps=7"]) == 0
    said = capsys.readouterr().out
    assert "Plan: tiny" in said
    assert "7 steps" in said
    assert not Path("checkpoints").exists()


def test_check_accepts_a_valid_recipe(recipe, capsys):
    assert main(["check", recipe]) == 0
    assert "The recipe is valid." in capsys.readouterr().out


def test_check_reports_every_problem_at_once(recipe, capsys):
    assert main(["check", recipe, "train.max_steps=x", "optimizer.lr=1", "data.0.path=nosuch.txt"]) == 2
    captured = capsys.readouterr()
    for key in ("train.max_steps = x", "optimizer.lr", "data.0.path = nosuch.txt"):
        assert key in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_is_valid(file, in_tmp_path, capsys):
    overrides = ["data.0.path=text.txt"] if "input.txt" in file.read_text() else []
    write_text("text.txt")
    assert main(["check", str(file), *overrides]) == 0


def test_a_mistyped_recipe_name_gets_a_suggestion(in_tmp_path, capsys):
    assert main(["run", "dmo"]) == 2
    assert "Did you mean demo?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("plays.txt", "To be, or not to be: that is the question\n", "llm-lab new pretrain data.0.path=plays.txt"),
        ("one line.txt", "Scene: one\n", "llm-lab new pretrain data.0.path='one line.txt'"),
        ("chats.jsonl", '{"messages": []}\n{"messages": []}\n', "llm-lab new sft data.0.path=chats.jsonl"),
        ("tiny.gguf", "GGUF\0", "llm-lab chat tiny.gguf"),
    ],
)
def test_a_file_that_is_not_a_recipe_gets_the_command_for_it(name, text, fix, in_tmp_path, capsys):
    Path(name).write_text(text)
    assert main(["run", name]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "not a recipe" in said
    assert f"`{fix}`" in said


def test_a_binary_file_with_the_name_of_a_text_is_not_called_a_text(in_tmp_path, capsys):
    Path("photo.txt").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    assert main(["check", "photo.txt"]) == 2
    assert capsys.readouterr().err == "photo.txt: this is a binary file, not a recipe.\n"


@pytest.mark.skipif(find_machine().cuda_problem is None, reason="this machine has a GPU")
def test_a_cuda_recipe_without_cuda_exits_with_3_and_a_fix(recipe, capsys):
    assert main(["run", recipe, "device=cuda"]) == MachineError.exit_code == 3
    said = capsys.readouterr().err
    assert find_machine().cuda_problem in said.replace("\n", " ")
    assert "device=cpu" in said
    assert not Path("checkpoints").exists()


def test_an_error_is_a_short_paragraph_without_a_traceback(in_tmp_path):
    done = lab("run", "nosuch.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nosuch.yaml: there is no such recipe file." in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip()) < 400


@pytest.mark.parametrize("words", [["--debug", "run", "nosuch.yaml"], ["run", "nosuch.yaml", "--debug"]])
def test_debug_shows_the_traceback(in_tmp_path, words):
    assert "Traceback" in lab(*words).stderr


def test_an_internal_error_exits_with_1_and_names_debug(in_tmp_path, capsys, monkeypatch):
    def boom():
        raise RuntimeError("boom")

    monkeypatch.setattr("llm_lab.commands.machine_commands.print_doctor", boom)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: boom" in said
    assert "--debug" in said


def test_an_unknown_command_exits_with_2(capsys):
    assert main(["frobnicate"]) == 2
    assert "llm-lab frobnicate: there is no such command." in capsys.readouterr().err


def test_ctrl_c_saves_a_checkpoint_and_exits_with_130(recipe):
    words = ["run", recipe, "train.max_steps=20000", "train.eval_steps=20000", "train.save_steps=20000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ForkedCommand(*words, "train.logging_steps=5", **pipes) as child:
        for line in child.stdout:
            if line.startswith("step "):
                child.send_signal(signal.SIGINT)
                break
        rest, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "--resume" in rest
    assert "Traceback" not in errors
    assert list(Path("checkpoints/tiny/steps").glob("checkpoint-*"))


@pytest.mark.parametrize("what", [[], ["recipes"], ["data"], ["parts"], ["runs"]])
def test_list_shows_recipes_data_parts_and_runs(trained, what, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["list", *what]) == 0
    said = capsys.readouterr().out
    expected = {"recipes": "demo", "data": "builtin:stories", "parts": "rmsnorm", "runs": "on disk"}
    for name in what or expected:
        assert expected[name] in said


def test_copy_writes_a_new_file_and_never_overwrites(in_tmp_path, capsys):
    assert main(["copy", "demo", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text() == next(f for f in SHIPPED if f.stem == "demo").read_text()
    assert "llm-lab run mine.yaml" in capsys.readouterr().out
    assert main(["copy", "demo", "mine.yaml"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_show_describes_a_checkpoint(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["show", "tiny"]) == 0
    said = capsys.readouterr().out
    for text in ("parameters", "vocabulary    257", "checkpoints/tiny: pretrain, done", "scratch"):
        assert text in said


def test_a_mistyped_run_name_gets_a_suggestion(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["show", "checkpoints/tny"]) == 2
    assert "Did you mean checkpoints/tiny?" in capsys.readouterr().err


def test_a_folder_that_cannot_be_resumed_says_why_and_does_not_suggest_itself(in_tmp_path, capsys):
    Path("checkpoints/torn").mkdir(parents=True)
    Path("checkpoints/torn/run.json").write_text("[not json")
    assert main(["run", "torn", "--resume"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "checkpoints/torn has no recipe.yaml, so it can't be run or resumed" in said
    assert "Did you mean" not in said


def test_chat_with_a_prompt_prints_only_the_answer(trained):
    words = ("chat", "checkpoints/tiny", "--prompt", "the", "--seed", "1", "--max-new-tokens", "8")
    first = run_forked(*words, cwd=trained, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.returncode == 0
    assert first.stdout.endswith("\n")
    assert "Loading" not in first.stdout + first.stderr
    assert "\x1b" not in first.stdout
    assert "Warning" not in first.stderr


def test_chat_with_a_missing_model_exits_with_2(in_tmp_path, capsys):
    assert main(["chat", "checkpoints/nosuch", "--prompt", "x"]) == 2
    assert "checkpoints/nosuch" in capsys.readouterr().err


def test_doctor_shows_what_the_machine_can_do(in_tmp_path, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for text in ("CPU", "memory", "bf16 CUDA", "torch"):
        assert text in said


def test_schema_prints_a_json_schema(capsys):
    assert main(["schema"]) == 0
    assert "$defs" in json.loads(capsys.readouterr().out)


def test_version_and_help(capsys):
    for word in ("--version", "--help"):
        with pytest.raises(SystemExit) as leaving:
            main([word])
        assert leaving.value.code == 0
    assert "llm-lab" in capsys.readouterr().out


# --- errors about arguments, and help


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("chta x", "llm-lab chta: there is no such command. Did you mean chat?"),
        ("rum x", "llm-lab rum: there is no such command. Did you mean rm or run?"),
        (
            "study attention --steps 9",
            "--steps: `llm-lab study` has no such option. Options of the study are written without --: steps=VALUE.",
        ),
        ("run demo --yes", "--yes: `llm-lab run` has no such option. `llm-lab run --help` shows its arguments."),
        ("run demo --dryrun", "--dryrun: `llm-lab run` has no such option. Did you mean --dry-run?"),
        (
            "list runz",
            "llm-lab list runz: there is no such kind. Allowed: recipes, data, models, parts, runs. Did you mean runs?",
        ),
        ("run", "llm-lab run: the argument recipe is missing. For example: llm-lab run stories."),
        ("mv a", "llm-lab mv: the argument name is missing."),
        ("mv a -x", "-x: `llm-lab mv` has no such option."),
        ("mv a --plai", "llm-lab mv: the argument name is missing."),
        ("list --fltr x", "--fltr: `llm-lab list` has no such option."),
        ("rm --dryrun", "--dryrun: `llm-lab rm` has no such option. Did you mean --dry-run?"),
        ("mv", "llm-lab mv: the arguments run and name are missing. For example: llm-lab mv stories-2 stories-long."),
        ("train my.txt", "llm-lab train: there is no such command. That is `llm-lab run RECIPE`."),
        ("web --port -1.5", "--port = -1.5: it is not a whole number."),
        ("web --port x", "--port = x: it is not a whole number."),
        ("web --port", "--port: requires a value: --port N."),
        ("show a b", "llm-lab show ... b: one argument too many."),
    ],
)
def test_a_wrong_argument_is_one_paragraph_with_a_suggestion(words, said, capsys):
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.split())
    assert "usage:" not in printed.err
    assert printed.out == ""


def test_every_command_has_a_sentence_two_examples_that_parse_and_a_place_in_the_overview(capsys):
    commands = commands_of(make_parser())
    for name, parser in commands.items():
        assert parser.description.endswith("."), name
        assert len(parser.examples) == 2, name
        for line in parser.examples:
            words = shlex.split(line.partition(">")[0].partition("|")[0])[1:]
            assert callable(function_of(parse(words))), line
            assert words[0] == name
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^  ([a-z]+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert sorted(listed) == sorted(commands)


def test_the_arguments_of_a_command_are_not_those_of_the_one_before():
    assert parse(["run", "r.yaml", "--resume", "train.max_steps=5"]).overrides == ["train.max_steps=5"]
    again = parse(["run", "r.yaml"])
    assert (again.overrides, again.resume) == ([], False)


def test_the_help_of_chat_and_compare_has_the_defaults():
    from llm_lab.chat.decoding import ChatSettings
    from llm_lab.evaluation.compare import SETTINGS

    commands = commands_of(make_parser())
    for name, settings in (("chat", ChatSettings()), ("compare", SETTINGS)):
        shown = dict(
            re.findall(r"--([a-z-]+) \w+ [^-]*?\(default ([\d.]+)", " ".join(commands[name].format_help().split()))
        )
        assert {"temperature", "max-new-tokens"} <= shown.keys()
        for option, value in shown.items():
            assert float(value) == getattr(settings, option.replace("-", "_")), (name, option)


def test_the_help_of_every_command_fits_into_60_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for name, parser in commands_of(make_parser()).items():
        text = parser.format_help().partition("examples:")[0]
        assert max(map(len, text.splitlines())) <= 60, name


# --- answers as JSON


@pytest.mark.parametrize(
    "words",
    [
        "list",
        "list runs",
        "list models",
        "show tiny",
        "check tiny.yaml",
        "run tiny.yaml --dry-run",
        "gc --dry-run",
        "study attention --dry-run",
        "study",
    ],
)
def test_with_json_standard_output_is_one_document(trained, words, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main([*words.split(), "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_the_documents_have_the_facts(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    main(["check", "tiny.yaml", "--json"])
    stage = json.loads(capsys.readouterr().out)["stages"][0]
    assert stage["recipe"]["train"]["max_steps"] == 4
    assert stage["origins"]["train.max_steps"]["kind"] == "answer"
    assert stage["estimate"]["parameters"] > 0
    main(["show", "tiny", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"]["results"]["step"] == 4
    assert shown["model"]["parameters"] == stage["estimate"]["parameters"]
    assert [one["run"] for one in shown["lineage"]] == ["checkpoints/tiny"]
    main(["list", "runs", "--json"])
    assert json.loads(capsys.readouterr().out)["runs"][0]["status"] == "done"


@pytest.mark.parametrize(
    "words", ["check tiny.yaml train.max_stepz=1", "show nosuch", "chta", "run tiny.yaml --nosuch"]
)
def test_with_json_an_error_is_a_document_too(trained, words, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main([*words.split(), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2
    assert set(error["problems"][0]) == {"key", "value", "why", "allowed", "fix", "message"}


def test_numbers_that_json_lacks_are_null():
    assert json.loads(Document({"loss": float("nan"), "more": [float("inf"), 1.5], "path": Path("a")}).as_json()) == {
        "loss": None, "more": [None, 1.5], "path": "a",
    }  # fmt: skip


def test_a_run_with_json_prints_its_facts_and_keeps_its_progress_apart(trained, capfd, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["run", "tiny.yaml", "name=again", "--json"]) == 0
    done = capfd.readouterr()
    facts = json.loads(done.out)
    assert (facts["status"], facts["path"], facts["results"]["step"]) == ("done", "checkpoints/again", 4)
    assert "step 4" in done.err


def test_a_closed_pipe_is_not_an_error(trained):
    command = f"{sys.executable} -m llm_lab list parts | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=trained)
    assert "Traceback" not in done.stderr


def test_an_argument_that_cannot_be_a_file_name_is_refused(capsys):
    assert main(["merge", "adapter", "--out", "a\ud800"]) == 2
    assert "half of a character" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("merge tiny", "this folder is not an adapter: it is a full model"),
        ("run tiny.yaml --resume --overwrite", "a run is either resumed or replaced"),
        ("show .", "this folder is neither a run nor a model"),
        ("gc --keep 0", "at least one checkpoint of each run is kept"),
    ],
)
def test_what_cannot_be_done_is_reported_before_anything_is_shown(words, said, trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.split())
    assert printed.out == ""


def test_ctrl_c_while_the_arguments_are_read_stops_without_a_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_lab.cli.parse", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\nStopped.\n"


# --- a run's recipe from another folder


def test_a_runs_recipe_replays_resumes_and_evaluates_from_any_folder(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = trained / "checkpoints/tiny"
    for path in (str(run), str(run / "recipe.yaml")):
        assert main(["run", path, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["data"][0]["path"] == str(trained / "text.txt")
    again = Path("checkpoints/tiny-2").resolve()
    assert read_recipe_file(again)["data"][0]["path"] == str(trained / "text.txt")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "elsewhere/checkpoints/tiny", "--dry-run", "--resume"]) == 0  # one with absolute paths
    assert main(["run", str(run), "--resume", "--json"]) == 0  # one with relative paths that is already done
    assert json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["path"] == str(run)
    assert main(["run", str(run), "--resume", "name=abc"]) == 2
    assert "name = abc: a resumed run keeps its name. Allowed: tiny." in " ".join(capsys.readouterr().err.split())
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"][0]["own"] is True
    assert main(["check", str(run), "data.0.path=text.txt"]) == 2  # an override is relative to the working folder


# --- new, design, completion


def test_new_writes_a_recipe_that_is_valid_and_never_overwrites(in_tmp_path, capsys):
    write_text("text.txt")
    words = ["new", "pretrain", "data.0.path=text.txt", "train.max_steps=7", "--out", "mine.yaml"]
    assert main(words) == 0
    assert "llm-lab run mine.yaml" in capsys.readouterr().out
    assert read_recipe_file(Path("mine.yaml"))["train"] == {"max_steps": 7}
    assert main(["check", "mine.yaml"]) == 0
    assert main(words) == 2
    assert main(["new", "pretrain", "data.0.path=nosuch.txt"]) == 2
    assert main(["new", "pretain"]) == 2
    said = capsys.readouterr()
    assert "Did you mean pretrain?" in said.err
    assert main(words[:-2]) == 0  # without a terminal the recipe is printed
    assert yaml.safe_load(capsys.readouterr().out)["train"]["max_steps"] == 7


def test_new_says_what_it_could_not_check_and_shows_a_command_that_can_be_pasted(in_tmp_path, capsys):
    write_rows("chats.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    words = ["new", "sft", "model.checkpoint=nosuch", "data.0.path=chats.jsonl", "--out", "my chats.yaml"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "llm-lab run 'my chats.yaml'" in said.out
    assert "nosuch is not a local folder and was not checked" in said.err
    assert "llm-lab run 'my chats.yaml'" in Path("my chats.yaml").read_text()


def test_design_writes_a_config_that_can_be_pretrained(in_tmp_path, capsys):
    write_text("text.txt")
    assert main(["design", "hidden_size=32", "num_attention_heads=2", "num_hidden_layers=3", "--out", "small"]) == 0
    assert json.loads(Path("small/config.json").read_text())["num_hidden_layers"] == 3
    assert main(["new", "pretrain", "model.config=small", "data.0.path=text.txt"]) == 0
    assert main(["design", "hidden_siz=32", "--out", "other"]) == 2
    assert "Did you mean hidden_size?" in capsys.readouterr().err


COMPLETIONS = {
    "study at": {"attention"},
    "rm t": {"tiny"},
    "study attention st": set(),
    "c": {"check", "copy", "chat", "compare", "completion"},
    "run --re": {"--resume", "--resume-from"},
    "run tin": {"tiny", "tiny.yaml"},
    "run own": {"own-recipe"},
    "run demo train.max_st": {"train.max_steps="},
    "chat t": {"tiny", "tiny.yaml", "text.txt"},
    "list runs --sort d": {"disk"},
    "export tiny --to ": {"hf", "gguf", "space"},
    "new g": {"grpo"},
    "web --port ": set(),
}


def test_bash_completes_commands_options_values_recipes_runs_and_keys(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    Path("configs").mkdir(exist_ok=True)
    Path("configs/own-recipe.yaml").write_text("")
    assert main(["completion", "bash"]) == 0
    Path("completion.bash").write_text(capsys.readouterr().out)
    lines = ["source completion.bash"]
    for words in COMPLETIONS:
        typed = " ".join(shlex.quote(word) for word in ["llm-lab", *words.split(" ")])
        lines.append(
            f'COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _llm_lab; echo "${{COMPREPLY[*]}}"'
        )
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stderr == ""
    assert dict(zip(COMPLETIONS, map(set, map(str.split, done.stdout.split("\n"))), strict=False)) == COMPLETIONS


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, parser in commands_of(make_parser()).items():
        assert name in script
        assert all(option.removeprefix("--") in script for option in parser.options if option != "--in-folder")
    if which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0
