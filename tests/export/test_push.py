"""A push to the Hub, against a hub on loopback: whole or not at all, taken up again, and never a token in sight."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import tiny_recipe, write_text
from support.hub_stand_in import HubStandIn, Repository, User
from support.listeners import Handlers
from support.post_runs import write_base
from transformers import AutoModelForCausalLM

from llm_lab import cli, commands, job
from llm_lab.errors import LabError, MachineError, UserError
from llm_lab.events import ignore
from llm_lab.export.push import describe_push, files_of, push_folder
from llm_lab.export.repository import find_destination
from llm_lab.hf.adapter import weights_digest
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.runs.folder import RunFolder

WRITES, READS, FINE = "hf_Writes0123456789", "hf_Reads0123456789", "hf_Fine0123456789"


# The Hub's client hands its files to its HTTP library in a way that this one is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning")


class Heard(Handlers):
    """Keeps what is said."""

    def __init__(self):
        self.notices, self.steps = [], []

    def notice(self, text):
        self.notices.append(text)

    def progress(self, label, done, total):
        self.steps.append((label, done, total))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback where ann may write, in her own name and her club's; the client does not wait to retry."""
    monkeypatch.setenv("HF_TOKEN", WRITES)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    users = {
        WRITES: User("ann", organizations=("club",), guest_of=("guild",)),
        READS: User("ann", role="read"),
        FINE: User("ann", role="fineGrained", scoped=("club",)),
    }
    with HubStandIn(users) as stand_in:
        yield stand_in


@pytest.fixture
def exported(in_tmp_path) -> Path:
    """A small model with its own code, as an export leaves it."""
    folder = Path(write_base("exported", norm="layernorm", activation="relu"))
    (folder / "README.md").write_text("---\ntags: [llm-lab]\n---\n# A model\n")
    return folder


@pytest.fixture
def in_shards(in_tmp_path) -> Path:
    """A model of 10 MB in several files of weights."""
    write_base("whole", hidden_size=256, num_hidden_layers=4)
    LabForCausalLM.from_pretrained("whole").save_pretrained("shards", max_shard_size="2MB")
    assert len(list(Path("shards").glob("*.safetensors"))) > 3
    return Path("shards")


def push(hub, folder, repo="ann/model", private=True, listener=None):
    destination = find_destination(repo, private=private, endpoint=hub.url)
    return push_folder(folder, destination, listener or ignore, message="a model", again="the same command")


@contextmanager
def raises_in_words(kind, *words):
    """The error has its exit code, says these words, and no token."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert type(caught.value) is kind
    for word in words:
        assert word in text
    assert not any(token in text for token in (WRITES, READS, FINE))


FROM_THE_HUB = """
import sys
sys.modules["llm_lab"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("ann/model", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained("ann/model")
ids = torch.tensor([tokenizer("A river runs.").input_ids])
torch.save(model(ids).logits, sys.argv[1])
"""


def test_a_pushed_model_loads_from_the_hub_in_a_fresh_process_and_computes_the_same(hub, exported, tmp_path):
    pushed = push(hub, exported)
    assert pushed.record() == {
        "repo": "ann/model",
        "endpoint": hub.url,
        "url": f"{hub.url}/ann/model",
        "commit": hub.repositories["ann/model"].sha,
        "commit_url": f"{hub.url}/ann/model/commit/{pushed.commit}",
        "private": True,
        "files": len(files_of(exported)),
        "size_bytes": sum(path.stat().st_size for path in exported.iterdir()),
    }
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    out = tmp_path / "logits.pt"
    result = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUB, out], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
    ids = torch.tensor([list(b"A river runs.")])
    assert torch.equal(torch.load(out, weights_only=True), model(ids).logits)


def test_every_file_arrives_byte_for_byte_and_nothing_hidden_does(hub, exported):
    (exported / ".cache").mkdir()
    (exported / ".cache" / "secret").write_text("x")
    (exported / "__pycache__").mkdir()
    (exported / "__pycache__" / "modeling_lab.pyc").write_bytes(b"x")
    push(hub, exported)
    there = set(hub.repositories["ann/model"].files) - {".gitattributes"}
    assert there == {name for name, _ in files_of(exported)}
    assert {"config.json", "model.safetensors", "modeling_lab.py", "README.md"} <= there
    assert not any("cache" in name for name in there)
    for name in there:
        assert hub.read("ann/model", name) == (exported / name).read_bytes(), name
    assert len(hub.repositories["ann/model"].commits) == 1


def test_a_hub_without_xet_is_sent_to_by_git_lfs_though_the_xet_client_is_installed(hub, exported):
    from huggingface_hub import constants
    from huggingface_hub.utils._runtime import is_xet_available

    assert is_xet_available()
    push(hub, exported)
    assert isinstance(hub.repositories["ann/model"].files["model.safetensors"], str)
    assert is_xet_available()
    assert not constants.HF_HUB_DISABLE_XET


def test_large_files_come_in_parts_where_the_hub_wants_them_so(hub, in_shards):
    hub.part_bytes = 600_000
    push(hub, in_shards)
    assert any(path.endswith("/complete") for _, path, _ in hub.requests)
    for file in in_shards.glob("*.safetensors"):
        assert hub.read("ann/model", file.name) == file.read_bytes()


def test_without_a_token_nothing_is_asked_and_the_error_says_how_to_log_in(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with raises_in_words(UserError, "no token", "hf auth login", "HF_TOKEN"):
        find_destination("ann/model", endpoint=hub.url)
    assert hub.requests == []


def test_a_login_is_as_good_as_a_token_in_the_environment(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "login").write_text(WRITES + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "login"))
    assert find_destination("ann/model", endpoint=hub.url).user == "ann"


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_Unknown", "ann/model", ("does not know this token", "hf auth login")),
        (READS, "ann/model", ("ann", "may only read", "write permission")),
        (WRITES, "bob/model", ("ann", "can't write to bob", "ann/NAME", "club/NAME")),
        (WRITES, "guild/model", ("ann", "can't write to guild")),
        (WRITES, "ann/two--dashes", ("the Hub takes no such name", "two--dashes")),
        (FINE, "ann/model", ("fine-grained", "no write permission for ann")),
    ],
)
def test_what_the_hub_would_not_take_is_refused_before_anything_is_made(hub, monkeypatch, token, repo, words):
    monkeypatch.setenv("HF_TOKEN", token)
    with raises_in_words(UserError, *words):
        find_destination(repo, endpoint=hub.url)
    assert hub.written() == []


def test_a_repository_that_is_there_and_may_only_be_read_is_refused_with_the_hubs_own_words(hub, monkeypatch):
    hub.repositories["club/model"] = Repository(private=True)
    hub.users[FINE] = User("ann", role="fineGrained", organizations=("club",), scoped=("elsewhere",))
    monkeypatch.setattr("llm_lab.export.repository._require_permission", lambda *_: None)  # what it tells may change
    monkeypatch.setenv("HF_TOKEN", FINE)
    with raises_in_words(UserError, "may not do this", "not the required permissions", "club/model"):
        find_destination("club/model", endpoint=hub.url)


def test_an_organization_and_a_fine_grained_token_with_its_scope_are_let_in(hub, exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", FINE)
    hub.users[FINE] = User("ann", role="fineGrained", organizations=("club",), scoped=("club",))
    assert push(hub, exported, "club/model").repo == "club/model"


def test_a_hub_that_is_away_is_the_machines_fault_and_says_where_the_export_stands(hub, exported):
    destination = find_destination("ann/model", endpoint=hub.url)
    hub.__exit__()
    huggingface_hub.close_session()  # its kept-alive connections
    with raises_in_words(MachineError, "the connection to http://127.0.0.1", "Check the network"):
        find_destination("ann/model", endpoint=hub.url)
    with raises_in_words(MachineError, "stands in exported", "`llm-lab run x --resume` sends what is missing"):
        push_folder(exported, destination, ignore, message="a model", again="llm-lab run x --resume")


def test_offline_by_choice_is_told_as_such(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises_in_words(MachineError, "HF_HUB_OFFLINE"):
        find_destination("ann/model", endpoint=hub.url)


@pytest.fixture
def at_the_command_line(hub, monkeypatch, in_tmp_path, capfd):
    """Run `llm-lab ...` with the hub as the Hub; returns (exit code, all that was printed)."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    write_base("base", hidden_size=256, num_hidden_layers=4)

    def command(*words):
        try:
            code = cli.main(list(words))
        except SystemExit as end:
            code = end.code
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return command


def everything_kept() -> str:
    """All that stands in the run folders, weights aside."""
    files = [file for file in Path("checkpoints").rglob("*") if file.is_file()]
    return "".join(file.read_text(errors="replace") for file in files if file.suffix != ".safetensors")


def test_a_checkpoint_is_exported_proven_and_sent_by_one_command(hub, at_the_command_line):
    code, printed = at_the_command_line("export", "base", "--push", "ann/model", "--public")
    assert code == 0, printed
    folder = Path("checkpoints/base-hf")
    facts = json.loads((folder / "run.json").read_text())
    there = hub.repositories["ann/model"]
    assert facts["status"] == "done"
    assert facts["proof"]["verdict"] == "proven"
    assert facts["pushed"]["repo"] == "ann/model"
    assert facts["pushed"]["commit_url"] == f"{hub.url}/ann/model/commit/{there.sha}"
    assert there.private is False
    assert set(there.files) - {".gitattributes"} == {name for name, _ in files_of(folder / "model")}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(there.files)
    card = hub.read("ann/model", "README.md").decode()
    assert "**proven**" in card
    assert 'from_pretrained("ann/model")' in card
    assert WRITES not in printed + everything_kept() + card
    assert str(Path.cwd()) not in card


def test_the_same_command_takes_up_a_push_that_broke(hub, at_the_command_line):
    hub.cut_after_bytes = 3_000_000
    code, printed = at_the_command_line("export", "base", "--push", "ann/model")
    assert code == 3, printed
    assert "llm-lab run checkpoints/base-hf --resume" in " ".join(printed.split())
    assert set(hub.repositories["ann/model"].files) == {".gitattributes"}
    assert WRITES not in printed + everything_kept()
    written = Path("checkpoints/base-hf/model/model.safetensors").stat().st_mtime_ns

    hub.cut_after_bytes = None
    code, printed = at_the_command_line("export", "base", "--push", "ann/model")
    assert code == 0, printed
    assert [path.name for path in Path("checkpoints").iterdir()] == ["base-hf"]
    assert Path("checkpoints/base-hf/model/model.safetensors").stat().st_mtime_ns == written
    assert json.loads(Path("checkpoints/base-hf/run.json").read_text())["pushed"]["repo"] == "ann/model"
    assert hub.read("ann/model", "config.json") == Path("checkpoints/base-hf/model/config.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, []),
        ("another repository", ["--push", "ann/other"]),
        ("other weights", ["--weights", "bf16"]),
        ("the model was trained again", []),
        ("all was sent", []),
    ],
)
def test_only_the_very_same_export_is_taken_up(hub, at_the_command_line, change, words):
    run = RunFolder(Path("checkpoints/base-hf"))
    command = ["export", "base", "--push", "ann/model"]
    recipe = commands._export_recipe(cli._parser().parse_args(command))
    run.write_recipe(job.read_job(recipe)[0].stages[0].to_yaml(()))
    parent = {"path": "base", "digest": weights_digest("base")}
    run.update(created_at=0, status="failed", parent=parent, export={"to": "hf"}, proof={"verdict": "proven"})
    if change == "the model was trained again":
        write_base("base", hidden_size=64)
    if change == "all was sent":
        run.update(pushed={"repo": "ann/model"})
    asked = commands._export_recipe(cli._parser().parse_args([*command, *words]))
    assert commands._push_is_pending(job.check(asked)) is (change is None)


def test_who_may_not_push_is_told_before_anything_is_exported(hub, at_the_command_line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READS)
    monkeypatch.setattr("llm_lab.stages.export.load_model", None)  # it is never come to
    code, printed = at_the_command_line("export", "base", "--push", "ann/model")
    assert code == 2
    assert "may only read" in printed
    assert list(Path("checkpoints").iterdir()) == []
    assert hub.written() == []


def test_a_pipeline_that_ends_in_a_push_asks_before_it_trains(hub, at_the_command_line, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    write_text("text.txt")
    stages = [tiny_recipe(), {"stage": "export", "export": {"push": "ann/model"}}]
    stages[0].pop("name")
    stages[0].pop("device")
    Path("pipe.yaml").write_text(json.dumps({"device": "cpu", "stages": stages}))
    code, printed = at_the_command_line("run", "pipe.yaml")
    assert code == 2, printed
    assert "hf auth login" in printed
    assert not Path("checkpoints/pipe").exists()


def test_a_dry_run_at_the_command_line_shows_all_and_does_nothing(hub, at_the_command_line):
    code, printed = at_the_command_line("export", "base", "--push", "ann/model", "--dry-run")
    assert code == 0, printed
    assert f"{hub.url}/ann/model (private) would be made, as ann" in printed
    assert "Nothing was sent" in printed
    shown = set(re.findall(r"^  (\S+) +[\d?]", printed, flags=re.MULTILINE))
    assert shown == {name for name, _ in files_of(Path("base"))} | {"README.md"}
    assert hub.written() == []
    assert not Path("checkpoints").exists()


def test_a_push_that_breaks_shows_no_half_model_and_goes_on_where_it_was(hub, in_shards):
    weights = {sha256(file.read_bytes()).hexdigest(): file.stat().st_size for file in in_shards.glob("*.safetensors")}
    hub.cut_after_bytes = 5_000_000
    with raises_in_words(MachineError, "connection", "stands in shards", "same command"):
        push(hub, in_shards)
    assert set(hub.repositories["ann/model"].files) == {".gitattributes"}
    arrived = dict(hub.objects)
    assert 0 < len(arrived) < len(weights)

    hub.cut_after_bytes, before = None, Counter(hub.received)
    push(hub, in_shards)
    for oid, size in weights.items():
        again = hub.received[oid] - before[oid]
        assert again == (0 if oid in arrived else size)
    for name, _ in files_of(in_shards):
        assert hub.read("ann/model", name) == (in_shards / name).read_bytes()
    assert len(hub.repositories["ann/model"].commits) == 1


def test_a_connection_that_breaks_for_a_moment_is_taken_up_without_a_word(hub, in_shards, monkeypatch):
    hub.cut_after_bytes = 5_000_000

    def comes_back(seconds):
        hub.cut_after_bytes = None

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", comes_back)
    assert push(hub, in_shards).files == len(files_of(in_shards))


def test_a_push_whose_commit_failed_sends_no_weights_again(hub, in_shards):
    hub.refuse_commits = 503
    with raises_in_words(MachineError, "503", "stands in shards"):
        push(hub, in_shards)
    hub.refuse_commits, before = None, Counter(hub.received)
    push(hub, in_shards)
    assert hub.received == before
    assert hub.read("ann/model", "config.json") == (in_shards / "config.json").read_bytes()


def test_what_is_there_already_is_not_sent_and_not_committed_again(hub, exported):
    first, before = push(hub, exported), Counter(hub.received)
    again = push(hub, exported)
    assert again.commit == first.commit
    assert hub.received == before
    assert len(hub.repositories["ann/model"].commits) == 1


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_unless_it_is_said_otherwise(hub, exported, private):
    display = Heard()
    assert push(hub, exported, private=private, listener=display).private is private
    assert hub.repositories["ann/model"].private is private
    assert any(("(private)" if private else "(public)") in notice for notice in display.notices)


def test_a_model_that_shall_be_private_never_goes_where_all_can_see_it(hub):
    hub.repositories["ann/model"] = Repository(private=False)
    with raises_in_words(UserError, "export.private", "seen by all", "--public"):
        find_destination("ann/model", private=True, endpoint=hub.url)
    assert find_destination("ann/model", private=False, endpoint=hub.url).private is False


def test_in_a_repository_that_is_there_an_older_model_goes_in_the_same_commit_and_the_rest_stays(hub, exported):
    of_others = {"notes.md": b"mine", "samples/a.json": b"{}", "samples/model.safetensors": b"kept", "old.gguf": b"g"}
    older = dict.fromkeys(
        ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json", "merges.txt"], b"x"
    )
    hub.repositories["ann/model"] = Repository(True, {**of_others, **older, "config.json": b"old"})
    display = Heard()
    push(hub, exported, listener=display)
    found = hub.repositories["ann/model"].files
    assert set(found) == {*of_others, *(name for name, _ in files_of(exported))}
    assert {name: found[name] for name in of_others} == of_others
    assert len(hub.repositories["ann/model"].commits) == 1
    assert any("adapter_config.json" in notice for notice in display.notices)


def test_a_gguf_file_goes_beside_the_weights_that_are_there(hub, in_tmp_path):
    Path("gguf").mkdir()
    Path("gguf/model-q8_0.gguf").write_bytes(b"GGUF")
    there = {"model.safetensors": b"x", "model-f16.gguf": b"y", "tokenizer.json": b"{}"}
    hub.repositories["ann/model"] = Repository(True, dict(there))
    push(hub, Path("gguf"))
    assert set(hub.repositories["ann/model"].files) == {*there, "model-q8_0.gguf"}


def test_a_dry_run_shows_repository_and_files_and_sends_nothing(hub, exported, monkeypatch):
    lines = describe_push("ann/model", files_of(exported), endpoint=hub.url)
    text = "\n".join(lines)
    assert f"{hub.url}/ann/model (private) would be made, as ann" in text
    for name in ("model.safetensors", "config.json", "README.md"):
        assert name in text
    assert "KiB" in text
    hub.repositories["ann/model"] = Repository(private=False)
    text = "\n".join(describe_push("ann/model", files_of(exported), private=False, endpoint=hub.url))
    assert "(public) is there: a commit is added" in text
    assert "It would be refused" in describe_push("ann/model", [], private=True, endpoint=hub.url)[0]
    monkeypatch.delenv("HF_TOKEN")
    text = "\n".join(describe_push("ann/model", files_of(exported), endpoint=hub.url))
    assert "no token" in text
    assert "model.safetensors" in text
    assert hub.written() == []


def test_the_token_stands_in_nothing_that_is_said_or_kept(hub, exported):
    display = Heard()
    pushed = push(hub, exported, listener=display)
    kept = json.dumps(pushed.record()) + "".join(display.notices) + str(display.steps)
    hub.refuse_commits = 400
    (exported / "config.json").write_text((exported / "config.json").read_text() + " ")
    with pytest.raises(LabError) as caught:
        push(hub, exported)
    assert WRITES not in kept + str(caught.value) + repr(caught.value.__context__ or "")


def test_how_far_the_sending_is_can_be_seen(hub, in_shards):
    display = Heard()
    push(hub, in_shards, listener=display)
    amounts = [done for _, done, _ in display.steps]
    assert amounts == sorted(amounts)
    assert len(amounts) > 3
    assert display.steps[-1][1] == display.steps[-1][2]
