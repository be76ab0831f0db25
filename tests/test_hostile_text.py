"""Text from run folders, data and models reaches terminals, reports and cards only as text."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest
import yaml
from support.post_runs import write_base, write_rows

from llm_lab.cli import main
from llm_lab.errors import Problem, UserError
from llm_lab.events import RunWarning
from llm_lab.runs.card import write_card
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.markdown import plain, table
from llm_lab.runs.report import keep_evaluation, write_report
from llm_lab.runs.samples import add_samples
from llm_lab.safe_text import StreamRedactor, redact
from llm_lab.wizard.home import menu_question

ESCAPES = "\x1b]8;;http://evil\x07\x1b[2J\x9b31m\u202e\r"
MARKDOWN = "[red]x[/] [link=http://evil]l[/link] ![p](http://evil/p.png) <img src=x> `` <b> ` | # y"
HOSTILE = f"a{ESCAPES}{MARKDOWN}"
NAME = ESCAPES.replace("/", ":")  # in a file name
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TOKEN = "hf_" + "aB3" * 11
SECRETS = (TOKEN, "sk-" + "a1" * 20, "s3cret-pass", "environment-s3cret")


@pytest.fixture
def hostile_run(in_tmp_path):
    """A run whose names and texts are all hostile, with a model that loads."""
    folder = Path("checkpoints") / f"run{HOSTILE.replace('/', ':')}"[:200]
    write_base(str(folder / "model"))
    run = RunFolder(folder)
    source = {"path": HOSTILE, "fingerprint": HOSTILE, "read": 3, "kept": 2, "dropped": {HOSTILE: 1}}
    evaluation = {"checkpoint": str(folder / "model"), "time": 1.0, "results": {"loss": 1.5, HOSTILE: 2.0}}
    facts = {
        "name": HOSTILE, "asked_name": HOSTILE, "stage": "sft", "status": "done", "created_at": 1.0,
        "machine": HOSTILE, "model": HOSTILE, "versions": {HOSTILE: HOSTILE}, "warnings": [HOSTILE],
        "error": HOSTILE, "device": "cpu", "parameters": 5, "data": [source],
        "results": {"eval_loss": 1.5, "step": 3, HOSTILE: 2.0},
        "parent": {"path": HOSTILE, "digest": None}, "references": {HOSTILE: {"path": HOSTILE, "digest": None}},
        "predicted": {"wall_seconds": 1.0, "basis": HOSTILE},
    }  # fmt: skip
    run.run_json.write_text(json.dumps(facts))
    recipe = {
        "stage": "sft",
        "name": "x",
        "device": "cpu",
        "model": {"checkpoint": HOSTILE},
        "data": [{"path": HOSTILE}],
    }
    run.recipe_path.write_text(yaml.safe_dump(recipe))
    run.metrics_path.write_text(json.dumps({"step": 3, "eval_loss": 1.5, HOSTILE: 1.0}) + "\n")
    run.samples_path.write_text(f"## Step 3\n\nPrompt: `{HOSTILE}`\n\n> {HOSTILE}\n\n<script>x</script>\n")
    (folder / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    Path("configs").mkdir()
    (Path("configs") / f"c{NAME}.yaml").write_text(yaml.safe_dump(recipe))
    write_rows("rows.jsonl", [{"prompt": HOSTILE, "completion": HOSTILE}] * 8)
    return folder


@pytest.mark.parametrize("width", ["80", pytest.param("400", marks=pytest.mark.slow)])
def test_no_command_writes_a_raw_control_character(hostile_run, capfd, monkeypatch, quick_verification, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("FORCE_COLOR", "")
    name, data = str(hostile_run), "rows.jsonl"
    sft = Path("sft.yaml")
    sft.write_text(
        yaml.safe_dump(
            {
                **{"stage": "sft", "name": "t", "device": "cpu", "model": {"checkpoint": name}},
                **{"data": [{"path": data}], "samples": {"prompts": [HOSTILE]}},
                "train": {"max_steps": 2, "max_length": 256, "eval_steps": 1},
            }
        )
    )
    commands = [
        ["list"],
        ["show", name],
        ["show", HOSTILE],
        ["check", name],
        ["check", str(next(Path("configs").iterdir()))],
        ["check", str(sft)],
        ["check", str(sft), f"name={HOSTILE}"],
        ["xray", str(sft)],
        ["run", name, "--dry-run"],
        ["run", str(sft), "--dry-run"],
        ["run", HOSTILE],
        ["run", name, HOSTILE],
        ["chat", name, "--prompt", HOSTILE, "--max-new-tokens", "3"],
        ["compare", name, HOSTILE],
        ["compare", name, "--steps"],
        ["eval", name],
        ["eval", name, "--data", data, "--device", "cpu", "eval.speed_tokens=0"],
        ["export", name, "--dry-run"],
        ["export", name, "--out", f"out{NAME}"],
        ["merge", name],
        ["replay", name, "--dry-run"],
        ["copy", name, f"copy{NAME}.yaml"],
        [HOSTILE],
        ["doctor"],
        ["schema"],
        ["list", "recipes"],
        ["run", str(sft), f"name=t{NAME}"],
        ["run", str(sft), "--resume"],
    ]
    for command in commands:
        with contextlib.suppress(SystemExit):
            main(command)
        written = capfd.readouterr()
        found = CONTROL.search(written.out + written.err)
        assert not found, (command, found, (written.out + written.err)[:2000])
        assert "Traceback" not in written.err


def test_the_wizard_writes_no_control_character_from_names(hostile_run):
    wizard = pexpect.spawn(
        sys.executable,
        ["-m", "llm_lab"],
        dimensions=(40, 120),
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"},
        timeout=90,
    )
    wizard.logfile_read = seen = io.BytesIO()
    wizard.delaybeforesend = 0.1
    wizard.expect("What would you like to do")
    wizard.send("\x1b[B" * [choice.value for choice in menu_question().choices].index("checkpoints") + "\r")
    wizard.expect_exact("[red]x")
    wizard.send("\r")
    wizard.expect("read|Back|back")
    wizard.close(force=True)
    text = seen.getvalue().decode(errors="replace")
    assert "run" in text
    assert "[red]x" in text, "the run with the hostile name was listed"
    for bad in ("\x1b]8;;http", "\x9b31m", "\u202e", "\x07"):
        assert bad not in text


def test_markup_in_names_means_nothing_in_a_terminal(hostile_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "4000")
    assert main(["list", "runs"]) == 0
    assert main(["show", str(hostile_run)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("[red]x[:]" if "[red]x[:]" in shown else "[red]x[/]") >= 2
    assert "[link=http" in shown


def test_reports_and_cards_show_markdown_and_html_as_text(hostile_run):
    from markdown_it import MarkdownIt

    run = RunFolder(hostile_run)
    write_report(run)
    for text in (run.report_path.read_text(), write_card(run.model_path).split("---\n", 2)[2]):
        assert not CONTROL.search(text)
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
        inner = [token for outer in tokens for token in (outer, *(outer.children or ()))]
        assert not [token.content for token in inner if "http://evil" in str(token.attrs)]
        assert not [
            token.content for token in inner if token.type.startswith("html") and "details" not in token.content
        ]
        headings = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
        assert not [heading for heading in headings[1:] if "y" in heading.split()]


@pytest.mark.parametrize(
    "text",
    [
        "# x",
        "- x",
        "1. x",
        "> x",
        "``` <b> ``",
        "a\n\n<b>",
        "![a](b)",
        "[a]: b",
        "*a*",
        "__a__",
        "a\n===",
        "&lt;b>",
        "|a|",
    ],
)
def test_plain_text_has_no_markdown_in_it(text):
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    (paragraph,) = [token for token in reader.parse(plain(text)) if token.type == "inline"]
    assert {token.type for token in paragraph.children} <= {"text", "text_special"}
    assert "".join(token.content for token in paragraph.children) == " ".join(text.split())
    rows = [token.content for token in reader.parse("\n".join(table(("x",), [(text,)]))) if token.type == "td_open"]
    assert len(rows) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRETS[1]}",
        f"{{'authorization': 'Bearer {TOKEN}'}}",
        f"https://me:{SECRETS[2]}@host/data.jsonl",
        f"https://{SECRETS[3]}@host/x",
        f"401 for https://host/x?token={SECRETS[2]}&b=1",
        f"the key {SECRETS[3]} is wrong",
        f"{TOKEN} {SECRETS[1]}",
    ],
)
def test_secrets_are_removed_from_errors_warnings_and_run_json(text, in_tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THEIR_API_KEY", SECRETS[3])
    run = RunFolder(Path("run"))
    run.update(error=text, warnings=[text])
    error = UserError(Problem(text, text, value=text, fix=text), text)
    for shown in (redact(text), str(error), RunWarning(text).text, run.run_json.read_text()):
        assert not [secret for secret in SECRETS if secret in shown]
        assert "***" in shown
    assert main(["show", text]) == 2
    written = capsys.readouterr()
    assert not [secret for secret in SECRETS if secret in written.out + written.err]


def test_secrets_are_removed_from_reports_metrics_samples_and_evaluations(in_tmp_path):
    text = f"see https://me:{SECRETS[2]}@host and {TOKEN}"
    run = RunFolder(Path("checkpoints/a"))
    run.update(stage="sft", status="done", results={"eval_loss": 1.0})
    run.write_recipe(f"stage: sft\nmodel: {{checkpoint: {TOKEN}}}\n")
    run.append_metrics({"step": 1, "loss": 1.0, "note": text})
    add_samples(run, 1, [(text, text)])
    write_report(run)
    keep_evaluation(
        run.path, {"time": 1.0, "results": {"eval_loss": 1.0}, "measured": {"scores": {"examples": [text]}}}
    )
    for file in ("metrics.jsonl", "samples.md", "report.md", "evaluations.jsonl"):
        written = (run.path / file).read_text()
        assert "***" in written, file
        assert not [secret for secret in SECRETS if secret in written], file


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_only_secrets_are_removed_from_a_streamed_reply(size):
    text = f"The key is {TOKEN}, at https://me:{SECRETS[2]}@host/x?a=1.\n\n- 漢字かな, x = y_1\n" + "w" * 500 + " end"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    redactor = StreamRedactor()
    shown = [redactor.push(piece) for piece in pieces]
    assert "".join(shown) + redactor.rest() == redact(text)
    if size == 1:
        assert "".join(shown[:12]) == "The key is ", "words are shown as they come"


@pytest.mark.parametrize("text", ["a." * 50_000, "sk-" * 30_000, "a://b" * 20_000])
def test_finding_secrets_in_a_long_text_is_fast(text):
    started = time.process_time()
    assert redact(text) == text
    assert time.process_time() - started < 3


def test_a_long_streamed_line_stays_fast():
    redactor, seconds = StreamRedactor(), []
    for _ in range(10):
        started = time.process_time()
        for _ in range(200):
            redactor.push("word ")
        seconds.append(time.process_time() - started)
    assert min(seconds[-3:]) < 3 * max(seconds[:2])


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a://b@", "a://***@"), ("?key=c", "?key=***"), ("&sig=c", "&sig=***"), ("ab://c@", "ab://***@")],
)
def test_the_shortest_secret_in_an_address_is_removed(text, shown):
    assert redact(text) == shown


def test_ordinary_text_is_not_mistaken_for_a_secret():
    text = "basic understanding of sk-learn-contrib, task-specific http://localhost:8000/x?keys=3 a@b.c bearer of news"
    assert redact(text) == text


def test_warnings_and_tracebacks_of_libraries_are_made_safe():
    program = """
import sys, warnings
from llm_lab import cli
from llm_lab.commands import machine_commands as commands
def fail(arguments):
    warnings.warn("\\x1b[31m https://me:s3cret-pass@host")
    raise ValueError("\\x1b[31m https://me:s3cret-pass@host " + 9_000_000 * "x")
commands.print_doctor = fail
commands.examine_machine = fail
sys.exit(cli.main(sys.argv[1:]))
"""
    for words in (["doctor"], ["doctor", "--debug"]):
        ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=os.environ)
        assert ended.returncode == 1
        assert "\x1b" not in ended.stderr
        assert "s3cret" not in ended.stderr
        assert ended.stderr.count("https://***@host") >= 2
        assert len(ended.stderr) < 10_000 or "--debug" in words


def test_an_error_of_megabytes_is_cut():
    problem = Problem("k" * 10**6, "w" * 10**6, value="v" * 10**6)
    error = UserError(*[problem] * 1000)
    assert len(str(error)) < 200_000
