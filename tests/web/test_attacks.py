"""Malicious requests and files: the page answers each with a reason, and does nothing else."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from starlette.routing import Mount
from support.web_runs import write_run
from support.web_server import run_apart

from llm_lab.errors import UserError
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lock import hold, is_holder, this_process
from llm_lab.studies.sweep import Sweep
from llm_lab.web.app import make_app
from llm_lab.web.comparison_pages import form_of
from llm_lab.web.data_calls import look_at_data
from llm_lab.web.launches import Launches, recorded_command, stop_run
from llm_lab.web.study_calls import plan_comparison
from llm_lab.web.uploads import safe_name

PORT = 7750
APP = make_app(port=PORT, token="token", session="session")
OWN = {"host": f"127.0.0.1:{PORT}", "cookie": f"llm-lab-{PORT}=session", "content-type": "application/json"}
FOREIGN = {
    "another host": {"host": f"evil.example:{PORT}"},
    "no port": {"host": "127.0.0.1"},
    "another origin": {"origin": "https://evil.example"},
    "another port of this machine": {"origin": "http://127.0.0.1:1"},
    "an opaque origin": {"origin": "null"},
    "a cross-site request": {"sec-fetch-site": "cross-site"},
    "a same-site request": {"sec-fetch-site": "same-site"},
    "no cookie": {"cookie": ""},
    "the cookie of another port": {"cookie": f"llm-lab-{PORT + 1}=session"},
    "another cookie": {"cookie": f"llm-lab-{PORT}=sessio"},
}
FORMS = {
    "a text": {"content-type": "text/plain; charset=utf-8"},
    "a form": {"content-type": "application/x-www-form-urlencoded"},
    "a form with files": {"content-type": "multipart/form-data; boundary=x"},
    "no type": {"content-type": ""},
}


def addresses():
    """Return (path, methods) for every route of the application."""
    for route in APP.routes:
        path = re.sub(r"\{\w+:int\}", "1", route.path)
        methods = {"GET", "HEAD"} if isinstance(route, Mount) else route.methods
        yield re.sub(r"\{\w+(:path)?\}", "demo", path) + ("/lab.js" if isinstance(route, Mount) else ""), methods


async def status_of(method, path, headers):
    """Return the status with which the application answers a request."""
    sent = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items() if value],
        "server": ("127.0.0.1", PORT),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        sent.append(message)

    await APP(scope, receive, send)
    return sent[0]["status"]


def test_every_address_refuses_requests_from_other_pages(server):
    async def ask_all():
        answered = []
        for path, methods in addresses():
            for method in methods | {"PUT", "DELETE", "OPTIONS", "TRACE"}:
                kinds = FOREIGN if method in ("GET", "HEAD") else {**FOREIGN, **FORMS}
                for why, headers in kinds.items():
                    if await status_of(method, path, {**OWN, **headers}) != 403:
                        answered.append((why, method, path))
        return answered

    assert run_apart(ask_all()) == []
    assert server.ask("GET", "/static/lab.js")[0] == 200


def test_no_two_pages_claim_the_same_address():
    claimed = [(method, route.path) for route in APP.routes if not isinstance(route, Mount) for method in route.methods]
    assert sorted(claimed) == sorted(set(claimed))


# --- commands


def planted_sweep(folder, command):
    return Sweep(folder, ("seed",), {}, (), (0,), "loss", command=command)


@pytest.mark.parametrize(
    "words",
    [
        "recipe.yaml lr=1,2 --tru",  # argparse accepts a prefix of an option as the option
        "recipe.yaml lr=1,2 --trust-recipe",
        "--trust-recipe recipe.yaml lr=1,2",
        "recipe.yaml lr=1,2 --name other",
        "recipe.yaml lr=1,2 -x",
        "recipe.yaml other.yaml",
        "recipe.yaml lr=1,2 'unclosed",
    ],
)
def test_a_planted_sweep_cannot_bring_words_that_the_form_does_not_have(tmp_path, words):
    assert form_of(planted_sweep(tmp_path / "mine", f"llm-lab sweep {words}")) is None


def test_the_form_of_a_sweep_can_be_restored_from_its_command(tmp_path):
    sweep = planted_sweep(tmp_path / "mine", "llm-lab sweep recipe.yaml 'a.b=1,2' seed=3 --seeds 2 --name mine")
    keys = [{"key": "a.b", "values": "1,2"}, {"key": "seed", "values": "3"}]
    assert form_of(sweep) == {"kind": "sweep", "recipe": "recipe.yaml", "keys": keys, "seeds": "2", "name": "mine"}


def test_a_planted_study_cannot_bring_an_option_of_the_command(server):
    study = {"experiment": "learning_rate", "file": "x", "options": {"--in-folder": "checkpoints/planted"}}
    folder = write_run(server.home, "planted", status="stopped", study=study)
    status, _, text = server.ask("POST", "/api/experiments/resume", {"name": folder.name})
    assert status == 400
    assert "learning_rate has no such option" in text


def test_a_sweep_runs_no_code_that_the_user_has_not_run_before(in_tmp_path):
    (in_tmp_path / "evil.py").write_text("def reward(completions, **columns):\n    return [1.0]\n")
    (in_tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1="}\n' * 8)
    write_run(in_tmp_path, "x")
    recipe = {
        "stage": "grpo",
        "name": "g",
        "device": "cpu",
        "model": {"checkpoint": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": [{"path": "prompts.jsonl"}],
        "rewards": [{"python": "evil.py:reward"}],
    }
    (in_tmp_path / "g.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="only Python code that you have run on this machine"):
        plan_comparison("sweep", "g.json", ["train.max_steps=2,3"], "llm-lab sweep g.json train.max_steps=2,3")


@pytest.mark.parametrize("name", ["../outside", "/outside", "-x", "a/b", ".hidden"])
def test_a_sweep_has_no_folder_outside_of_the_runs(in_tmp_path, name):
    (in_tmp_path / "text.txt").write_text("to be or not to be\n" * 100)
    recipe = {"stage": "pretrain", "device": "cpu", "data": [{"path": "text.txt"}], "train": {"max_steps": 2}}
    (in_tmp_path / "r.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="not the name of a folder"):
        plan_comparison("sweep", "r.json", ["train.max_steps=2,3"], "", name=name)


@pytest.mark.parametrize(
    "words",
    [
        ["study", "experiment", "--in-folder=x"],
        ["run", "--trust-recipe"],
        ["run", "configs/x.yaml", "--debug"],
        ["look", "demo", "--prompt", "\0"],
        ["look", "demo", "--prompt", "a" * 200_000],
    ],
)
def test_a_name_never_becomes_another_option_and_no_text_breaks_the_start(tmp_path, monkeypatch, words):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"begins with -|can't be started"):
        Launches().start(words)
    assert not list(tmp_path.rglob("*.log"))


def test_a_command_that_is_copied_from_the_page_is_safe_in_a_shell(server):
    folder = write_run(server.home, "a;touch pwned $(touch pwned)", status="stopped")
    page = server.ask("GET", "/runs/" + folder.name.replace(" ", "%20").replace(";", "%3B"))[2]
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    for command in (data["recipe"]["command"], data["recipe"]["replay"]):
        assert f"'checkpoints/{folder.name}" in command
    assert recorded_command("llm-lab study x; touch pwned") == "llm-lab study 'x;' touch pwned"
    assert recorded_command("touch pwned") is None


# --- stopping


@pytest.fixture
def bystander():
    """A process that is not related to the lab."""
    process = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"], stdout=-1)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def recorded(pid):
    import psutil

    return {"pid": pid, "host": socket.gethostname(), "started": psutil.Process(pid).create_time()}


def test_a_planted_run_cannot_stop_a_process_that_does_not_work_in_it(in_tmp_path, bystander):
    process = recorded(bystander.pid)
    without_lock = write_run(in_tmp_path, "without-lock", status="running", process=process)
    locked = write_run(in_tmp_path, "locked", status="running", process=process)
    linked = write_run(in_tmp_path, "linked", status="running", process=process)
    (linked / ".lock").symlink_to(f"/proc/{bystander.pid}/exe")
    with hold(locked):
        for folder in (without_lock, locked, linked):
            with pytest.raises(UserError, match=r"does not work in this folder|not running"):
                stop_run(RunFolder(folder))
    assert bystander.poll() is None


@pytest.mark.parametrize("pid", [1, 0, -1, True, "1", 2**70, None, "own"])
def test_no_record_can_make_the_page_stop_the_system_all_processes_or_itself(tmp_path, pid):
    pid = os.getpid() if pid == "own" else pid
    process = {**this_process(), "pid": pid}
    if pid == 1:
        process = recorded(1)
    with hold(tmp_path):
        assert not is_holder(tmp_path, process)


def test_a_run_is_stopped_by_the_record_of_its_own_process(in_tmp_path):
    folder = write_run(in_tmp_path, "mine", status="running")
    program = (
        "import sys, time; from pathlib import Path; from llm_lab.runs.lock import hold\n"
        "with hold(Path(sys.argv[1])):\n print(1, flush=True); time.sleep(60)"
    )
    working = subprocess.Popen([sys.executable, "-c", program, folder], stdout=-1, stderr=subprocess.DEVNULL)
    working.stdout.readline()
    write_run(in_tmp_path, "mine", status="running", process=recorded(working.pid))
    stop_run(RunFolder(folder))
    assert working.wait(10) in (-signal.SIGINT, 1)


# --- bodies

RECIPE = {"stage": "pretrain", "name": "fz", "device": "cpu", "data": [{"path": "no.txt"}], "train": {"max_steps": 3}}
FIELDS = {
    "recipe": RECIPE,
    "changes": [
        {"path": "train.max_steps", "text": "5"},
        {"path": "data.0.path", "value": "x"},
        {"path": "optimizer.name", "text": "muon"},
        {"path": "lora", "off": True},
    ],
    "name": "fz",
    "source": {"path": "no.jsonl"},
    "kind": "text",
    "topics": {
        "runs:": [1, 2],
        "run:demo": "x",
        "metrics:step:100:demo": [1, 2, 3, 4],
        "samples:demo": [],
        "study:x": 1,
    },
    "model": "no-such-model",
    "text": "hello",
    "messages": [{"role": "user", "content": "x"}],
    "settings": {"temperature": 1.0, "max_new_tokens": 3},
    "mode": "chat",
    "system": None,
    "hits": [{"title": "x", "url": "http://x.example", "snippet": "x"}],
    "slot": "c",
    "trust": False,
    "names": [],
    "prompts": ["x"],
    "max_new_tokens": 10,
    "temperature": 1.0,
    "query": "",
    "backend": "ftp://x",
    "options": {"seeds": "1"},
    "keys": [{"key": "optimizer.learning_rate", "values": "1,2"}],
    "seeds": "2",
    "jobs": "1",
    "by": "both",
    "prompt": "x",
    "against": "",
    "checkpoint": "",
    "position": 1,
    "layer": 0,
}
JUNK = [
    *(None, True, 0, -1, 1e308, 10**30, 2**63, "", "x" * 3000, "\ud800", "a\0b", "../../etc/passwd", "/etc/passwd"),
    *("-x", "--resume", "a\nb", [], [[]], {}, {"a": {"b": []}}, [None], ["x", 1], {"path": 5}, {"path": "\0"}, [{}]),
    *("~no-such-user/x", "checkpoints/../..", "name=1", [{"path": "a", "value": 1}], {"": ""}, "[" * 300),
    *("&a [*a,*a]", "!!python/object:os.system x"),
]


def changed(rng, value, depth=0):
    """Return a value with a part of it replaced by something of another kind."""
    if rng.random() < 0.3 or depth > 4 or not isinstance(value, dict | list) or not value:
        return rng.choice(JUNK)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], changed(rng, value[at], depth + 1), *value[at + 1 :]]
    name = rng.choice(list(value))
    rest = {key: one for key, one in value.items() if key != name}
    return rest if rng.random() < 0.2 else {**rest, name: changed(rng, value[name], depth + 1)}


def attack(server, paths, times, seed):
    rng = random.Random(seed)
    faults = []
    for path in paths:
        for _ in range(times):
            body = {name: value for name, value in FIELDS.items() if rng.random() < 0.7}
            for name in rng.sample(list(body), 3):
                body[name] = changed(rng, body[name])
            status, _, text = server.ask("POST", path, body)
            has_problems = '"problems"' in text or '"exists"' in text
            if status >= 500 or (status >= 400 and not has_problems) or "nternal error" in text:
                faults.append((path, status, text[:200], json.dumps(body)[:500]))
    return faults


# Calls that do not load a model, start anything or download anything.
QUICK = (
    "updates new/look new/start-recipe experiments/keys experiments/check chat/conversations search/describe".split()
)


def test_bodies_with_wrong_types_are_answered_with_the_problem(server):
    assert attack(server, [f"/api/{name}" for name in QUICK], 15, seed=1) == []


@pytest.mark.slow
def test_bodies_with_wrong_types_are_answered_with_the_problem_by_every_address(server):
    write_run(server.home, "demo")
    paths = sorted({path for path, methods in addresses() if "POST" in methods})
    assert attack(server, paths, 4, seed=2) == []
    assert server.ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"topics": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"topics": {"runs:": NaN}}',
        '{"topics": {"runs:": 1e999}}',
        '{"topics": ' + "9" * 5000 + "}",
        b"\xff\xfe{",
        '"text"',
        "",
    ],
)
def test_a_body_that_is_not_a_json_object_or_nested_too_deep_is_refused(server, body):
    status, _, text = server.ask("POST", "/api/updates", body, {"Content-Type": "application/json"})
    assert (status, "problems" in text) == (400, True)


def test_a_lone_surrogate_in_a_name_does_not_cause_a_fault(server):
    body = '{"topics": {"run:\\ud800": null}}'
    status, _, text = server.ask("POST", "/api/updates", body, {"Content-Type": "application/json"})
    assert (status, text.count("problems")) == (200, 1)


@pytest.mark.parametrize(
    "address",
    [
        "/runs/" + "a" * 1500,
        "/runs/" + "a" * 5000,
        "/api/launches/" + "9" * 5000,
        "/api/launches/" + "9" * 1000,
        "/api/voice?model=~no-such-user/x",
        "/test?model=~no-such-user/x",
        "/api/voice?model=%00",
        "/test?model=" + "a" * 1500,
        "/new?stage=sft&model=%00",
        "/runs/%ed%a0%80",
        "/static/..%2fguard.py",
        "/runs-files/..%2f..%2fx.svg",
        "/api/chat/conversations/..%5c..%5cx",
        "/experiments/run/%2e%2e",
    ],
)
def test_an_odd_address_does_not_cause_a_fault(server, address):
    assert server.ask("GET", address)[0] in (200, 400, 404, 414)


# --- planted files


def planted(server, name, **changes):
    folder = server.home / "checkpoints" / name
    folder.mkdir(exist_ok=True)
    one = {"name": "a", "label": "a", "values": {"seed": "1"}, "recipe": {"stage": "pretrain"}}
    record = {"kind": "sweep", "created_at": 1.0, "command": "llm-lab sweep a", "keys": ["seed"], "measure": "loss"}
    record |= {"seeds": [0], "remarks": [], "recipe": {}, "configurations": [one]}
    (folder / "sweep.json").write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"created_at": "yesterday"},
        {"command": 5},
        {"seeds": "ab"},
        {"seeds": list(range(20_000))},
        {"kind": "x"},
        {"recipe": []},
        {"configurations": [{"name": "../../../../etc", "label": "x", "values": {}, "recipe": {}}]},
        {"configurations": [{"name": 5, "label": "x", "values": {}, "recipe": {}}]},
    ],
)
def test_a_planted_sweep_does_not_take_the_pages_down(server, changes):
    planted(server, "bad", **changes)
    assert server.ask("GET", "/experiments")[0] == 200
    assert server.ask("GET", "/experiments/run/bad")[0] in (200, 400)
    assert server.ask("POST", "/api/experiments/resume", {"name": "bad"})[0] == 400


def test_a_link_that_leads_out_of_a_run_is_not_shown_and_a_pipe_does_not_block(server):
    secret = server.home / "secret.txt"
    secret.write_text("the secret")
    linked, piped = write_run(server.home, "linked"), write_run(server.home, "piped")
    (linked / "report.md").symlink_to(secret)
    (linked / "recipe.yaml").unlink()
    (linked / "recipe.yaml").symlink_to(secret)
    (linked / "curves.svg").symlink_to(secret)
    os.mkfifo(piped / "report.md")
    broken = server.home / "checkpoints" / "broken"
    broken.mkdir()
    os.mkfifo(broken / "run.json")
    for path in ("/runs/linked", "/api/runs/linked/report", "/runs-files/linked/curves.svg", "/new?from=linked"):
        status, _, text = server.ask("GET", path)
        assert status == 404
        assert "the secret" not in text
    started = time.monotonic()
    assert server.ask("GET", "/api/runs/piped/report")[0] == 404
    for path in ("/", "/chat", "/models", "/experiments"):
        assert server.ask("GET", path)[0] == 200
    assert time.monotonic() - started < 5


def test_a_script_in_a_planted_picture_does_not_run(server, chromium):
    folder = write_run(server.home, "drawn")
    script = "document.documentElement.setAttribute('class', 'ran')"
    (folder / "curves.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" onload="{script}"><title>drawn</title><script>{script}</script></svg>'
    )
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(server.link)
    tab.goto(f"{server.address}/runs-files/drawn/curves.svg")
    # `origin` of a sandboxed document is opaque: even if a script ran, it could not request anything with the cookie.
    found = tab.evaluate("[document.documentElement.getAttribute('class'), self.origin, document.title]")
    context.close()
    assert found == [None, "null", "drawn"]


# --- uploads


@pytest.mark.parametrize("name", ["漢" * 300 + ".jsonl", "é" * 300 + ".txt", "💥" * 90 + ".csv", "a" * 5000 + ".md"])
def test_a_very_long_upload_name_is_shortened_to_one_that_the_system_allows(in_tmp_path, name):
    (in_tmp_path / f".{safe_name(name)}.1234567.12345678.part").write_text("x")


def test_a_table_of_very_many_columns_is_refused_at_once(in_tmp_path):
    (in_tmp_path / "wide.csv").write_text(",".join(f"c{i}" for i in range(300_000)) + "\n" + "1," * 299_999 + "1\n")
    started = time.process_time()
    found = look_at_data({"path": "wide.csv"}, "conversation")
    assert "wide.csv has 300,000 columns; at most 10,000 are supported" in found["problem"]
    assert time.process_time() - started < 10
