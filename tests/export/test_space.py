"""A Space: a folder with the model, an app that chats with it, a card for the Hub, and the app's requirements."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from support.post_runs import write_base

from llm_lab.cli import main
from llm_lab.export.space import write_space
from llm_lab.runner import load
from llm_lab.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_verification")


def export():
    """Export a tiny model; return the folder of the Space."""
    write_base("checkpoints/born/model")
    RunFolder(Path("checkpoints/born")).update(name="born", stage="pretrain", status="done", created_at=1.0)
    assert main(["export", "born", "--to", "space"]) == 0
    return Path("checkpoints/born-space/space")


def space(own_code=False, **parts):
    """Write a Space for a tiny model, without verifying the model; return its folder."""
    source = write_base("born", **parts)
    shutil.copytree(source, "space/model")
    write_space(Path("space"), source=source, name="born", own_code=own_code, merged=False)
    return Path("space")


class Interface:
    """Replaces gradio.ChatInterface, and records its arguments."""

    def __init__(self, answer, **options):
        self.answer, self.options = answer, options


@pytest.fixture
def app(in_tmp_path, monkeypatch):
    """Return a function that executes app.py of a Space with a stand-in for Gradio's widgets; the model is real."""
    widgets = ModuleType("gradio")
    widgets.ChatInterface, widgets.Error = Interface, RuntimeError
    widgets.Textbox = widgets.Slider = lambda *values, **options: (values, options)
    monkeypatch.setitem(sys.modules, "gradio", widgets)

    def run(folder):
        file = (folder / "app.py").resolve()
        scope = {"__name__": "app", "__file__": str(file)}
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), scope)
        return scope

    return run


def test_the_folder_has_a_verified_model_an_app_a_card_and_the_requirements(in_tmp_path, capsys):
    folder = export()
    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "app.py", "model", "requirements.txt", "space.json")
    }
    facts = RunFolder(Path("checkpoints/born-space")).facts()
    assert facts["proof"]["verdict"] == "proven"
    assert facts["export"]["to"] == "space"
    printed = capsys.readouterr().out
    assert f"hf upload OWNER/NAME {folder} --repo-type space" in printed
    assert load("born-space")[0].num_parameters() == load("born")[0].num_parameters()
    assert main(["export", "born", "--to", "space", "--dry-run"]) == 0
    planned = re.findall(r"^  (\S+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert set(planned) == {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_the_card_has_the_metadata_that_the_hub_reads(in_tmp_path):
    folder = space()
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["sdk"], facts["app_file"], facts["title"]) == ("gradio", "app.py", "born")
    assert f"gradio=={facts['sdk_version']}" in (folder / "requirements.txt").read_text().split()
    assert "license" not in facts
    assert "The license is not known here." in body
    assert "context | 128 tokens" in body
    assert "code of its own" not in body


def test_a_model_made_from_a_library_model_has_its_license(in_tmp_path):
    write_base("checkpoints/tuned/model")
    parent = {"path": "google/gemma-3-270m-it", "digest": None}
    RunFolder(Path("checkpoints/tuned")).update(name="tuned", stage="sft", status="done", created_at=1.0, parent=parent)
    write_base("space/model")
    write_space(Path("space"), source="checkpoints/tuned/model", name="tuned", own_code=False, merged=True)
    card = Path("space/README.md").read_text(encoding="utf-8")
    facts = yaml.safe_load(card.split("---\n")[1])
    assert (facts["license"], facts["models"]) == ("gemma", ["google/gemma-3-270m-it"])
    assert "merged into its base" in card


def test_everything_that_the_app_imports_is_required_or_in_python(in_tmp_path):
    folder = space()
    tree = ast.parse((folder / "app.py").read_text(encoding="utf-8"))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    required = {re.split(r"[=<>]", line)[0] for line in (folder / "requirements.txt").read_text().split()}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == required


def test_the_app_streams_the_answer_that_the_model_gives(app):
    folder = space()
    scope = app(folder)
    assert scope["demo"].answer is scope["respond"]
    assert scope["demo"].options["title"] == "born"
    pieces = list(scope["respond"]("Hello", [], max_new_tokens=8, temperature=0))
    model, tokenizer = load("born")
    ids = torch.tensor([tokenizer("Hello")["input_ids"]])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert pieces[-1] == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert all(later.startswith(one) for one, later in pairwise(pieces))


def test_closing_the_answer_stops_the_generation(app):
    scope = app(space())
    calls = []
    forward = scope["model"].forward

    def counted(*given, **options):
        calls.append(1)
        time.sleep(0.02)
        return forward(*given, **options)

    scope["model"].forward = counted
    scope["tokenizer"].decode = lambda ids, **options: "word " * len(ids)  # so that pieces arrive at once
    answer = scope["respond"]("Hello", [], max_new_tokens=60, temperature=0)
    next(answer)
    answer.close()
    assert len(calls) < 30
    seen = len(calls)
    time.sleep(0.1)
    assert len(calls) == seen


def test_a_conversation_that_is_too_long_loses_its_oldest_turns(app):
    folder = space()
    tokenizer_config = folder / "model" / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + ' ' }}{% endfor %}"
    tokenizer_config.write_text(json.dumps(json.loads(tokenizer_config.read_text()) | {"chat_template": template}))
    scope = app(folder)
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n}" * 20} for n in range(8)]
    messages = [{"role": "system", "content": "short"}, *turns, {"role": "user", "content": "last?"}]
    text = scope["tokenizer"].decode(scope["prompt_ids"](messages, 100))
    assert text.startswith("s:short u:")
    assert text.endswith("u:last? ")
    assert "0000" not in text
    blocks = [{"role": "user", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]}]
    assert scope["text_of"](blocks[0]["content"]) == "Hello"
    assert list(scope["respond"]("Again", blocks, "Be kind.", max_new_tokens=2, temperature=0.5))


def test_a_model_with_its_own_code_is_trusted_and_the_card_says_so(app):
    folder = space(own_code=True, position_embedding="alibi", norm="layernorm", activation="gelu")
    assert "trust_remote_code=True" in (folder / "README.md").read_text(encoding="utf-8")
    scope = app(folder)
    assert type(scope["model"]).__name__ == "LabForCausalLM"
    assert list(scope["respond"]("Hello", [], max_new_tokens=3, temperature=0)) is not None
    assert json.loads((folder / "space.json").read_text())["own_code"] is True


def test_a_model_that_a_space_cannot_run_is_refused_with_the_reason(in_tmp_path, capsys):
    write_base("base")
    assert main(["export", "base", "--to", "space", "--push", "me/mine"]) == 2
    assert "hf upload me/mine" in capsys.readouterr().err
    assert main(["export", "base", "--to", "space", "--weights", "q8_0"]) == 2
    assert "q8_0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed: pip install gradio")
def test_the_space_starts_with_gradio_and_answers(in_tmp_path):
    from gradio_client import Client

    folder = export()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment) as process:
        try:
            client = None
            for _ in range(120):
                time.sleep(0.5)
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        client = Client(f"http://127.0.0.1:{port}", verbose=False)
                        break
            assert client is not None, "the app did not start"
            answer = client.predict("Hello", "", 8, 0.0, 1.0, api_name="/respond")
            assert isinstance(answer, str)
        finally:
            process.terminate()
