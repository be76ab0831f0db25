"""A push to the Hub, against a local stand-in: one commit or none, resumable, and the token is never shown."""

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
from support.listeners import Handlers
from support.local_hub import LocalHub, Repository, User
from support.post_runs import write_base
from transformers import AutoModelForCausalLM

from llm_lab import cli, job
from llm_lab.commands import model_commands as commands
from llm_lab.commands.arguments import parse
from llm_lab.errors import LabError, MachineError, UserError
from llm_lab.events import ignore
from llm_lab.export.push import describe_push, files_of, find_destination, push_folder
from llm_lab.hf.adapter import weights_digest
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.runs.folder import RunFolder

WRITES, READS, FINE = "hf_Writes0123456789", "hf_Reads0123456789", "hf_Fine0123456789"


# The Hub client passes files to its HTTP library in a deprecated way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning"),
    pytest.mark.usefixtures("quick_verification"),
]


class Recorder(Handlers):
    """Records notices and progress."""

    def __init__(self):
        self.notices, self.steps = [], []

    def notice(self, text):
        self.notices.append(text)

    def progress(self, label, done, total):
        self.steps.append((label, done, total))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub where ann can write to her own and her club's repositories; the client retries without waiting."""
    monkeypatch.setenv("HF_TOKEN", WRITES)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    users = {
        WRITES: User("ann", organizations=("club",), guest_of=("guild",)),
        READS: User("ann", role="read"),
        FINE: User("ann", role="fineGrained", scoped=("club",)),
    }
    with LocalHub(users) as local_hub:
        yield local_hub


@pytest.fixture
def exported(in_tmp_path) -> Path:
    """A small model with its own code, like an export."""
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
    return push_folder(folder, destination, listener or ignore, message="a model", retry="the same command")


@contextmanager
def raises_with(kind, *words):
    """Check that an error has this class, contains these words, and no token."""
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


def test_a_pushed_model_loads_from_the_hub_in_a_new_process_with_equal_logits(hub, exported, tmp_path):
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


def test_all_files_except_hidden_ones_are_pushed_unchanged(hub, exported):
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


def test_git_lfs_is_used_for_a_hub_without_xet(hub, exported):
    from huggingface_hub import constants
    from huggingface_hub.utils._runtime import is_xet_available

    assert is_xet_available()
    push(hub, exported)
    assert isinstance(hub.repositories["ann/model"].files["model.safetensors"], str)
    assert is_xet_available()
    assert not constants.HF_HUB_DISABLE_XET


def test_large_files_are_uploaded_in_parts_if_the_hub_requires_it(hub, in_shards):
    hub.part_bytes = 600_000
    push(hub, in_shards)
    assert any(path.endswith("/complete") for _, path, _ in hub.requests)
    for file in in_shards.glob("*.safetensors"):
        assert hub.read("ann/model", file.name) == file.read_bytes()


def test_without_a_token_the_error_says_how_to_log_in(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with raises_with(UserError, "no Hub token", "hf auth login", "HF_TOKEN"):
        find_destination("ann/model", endpoint=hub.url)
    assert hub.requests == []


def test_a_saved_login_is_used_like_the_environment_variable(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "login").write_text(WRITES + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "login"))
    assert find_destination("ann/model", endpoint=hub.url).user == "ann"


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_Unknown", "ann/model", ("does not accept this token", "hf auth login")),
        (READS, "ann/model", ("ann", "read-only", "write permission")),
        (WRITES, "bob/model", ("ann", "can't write to bob", "ann/NAME", "club/NAME")),
        (WRITES, "guild/model", ("ann", "can't write to guild")),
        (WRITES, "ann/two--dashes", ("invalid repository name", "two--dashes")),
        (FINE, "ann/model", ("fine-grained", "no write permission for ann")),
    ],
)
def test_missing_permissions_are_an_error_before_anything_is_created(hub, monkeypatch, token, repo, words):
    monkeypatch.setenv("HF_TOKEN", token)
    with raises_with(UserError, *words):
        find_destination(repo, endpoint=hub.url)
    assert hub.written() == []


def test_a_read_only_repository_is_an_error_with_the_hubs_message(hub, monkeypatch):
    hub.repositories["club/model"] = Repository(private=True)
    hub.users[FINE] = User("ann", role="fineGrained", organizations=("club",), scoped=("elsewhere",))
    monkeypatch.setattr("llm_lab.export.push._require_permission", lambda *_: None)
    monkeypatch.setenv("HF_TOKEN", FINE)
    with raises_with(UserError, "lacks the permission", "not the required permissions", "club/model"):
        find_destination("club/model", endpoint=hub.url)


def test_a_fine_grained_token_can_push_to_an_organization_in_its_scope(hub, exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", FINE)
    hub.users[FINE] = User("ann", role="fineGrained", organizations=("club",), scoped=("club",))
    assert push(hub, exported, "club/model").repo == "club/model"


def test_an_unreachable_hub_is_a_machine_error_that_names_the_export(hub, exported):
    destination = find_destination("ann/model", endpoint=hub.url)
    hub.__exit__()
    huggingface_hub.close_session()  # its kept-alive connections
    with raises_with(MachineError, "the connection to http://127.0.0.1", "Check the network"):
        find_destination("ann/model", endpoint=hub.url)
    with raises_with(MachineError, "The export is in exported", "`llm-lab run x --resume` resumes the push"):
        push_folder(exported, destination, ignore, message="a model", retry="llm-lab run x --resume")


def test_offline_mode_is_named_in_the_error(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises_with(MachineError, "HF_HUB_OFFLINE"):
        find_destination("ann/model", endpoint=hub.url)


@pytest.fixture
def at_the_command_line(hub, monkeypatch, in_tmp_path, capfd):
    """Run `llm-lab ...` with this hub as the Hub; return (exit code, all output)."""
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


def run_folder_texts() -> str:
    """Return the text of all files in the run folders, without weights."""
    files = [file for file in Path("checkpoints").rglob("*") if file.is_file()]
    return "".join(file.read_text(errors="replace") for file in files if file.suffix != ".safetensors")


def test_one_command_exports_verifies_and_pushes_a_checkpoint(hub, at_the_command_line):
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
    assert "**verified**" in card
    assert 'from_pretrained("ann/model")' in card
    assert WRITES not in printed + run_folder_texts() + card
    assert str(Path.cwd()) not in card


def test_the_same_command_resumes_a_failed_push(hub, at_the_command_line):
    hub.cut_after_bytes = 3_000_000
    code, printed = at_the_command_line("export", "base", "--push", "ann/model")
    assert code == 3, printed
    assert "llm-lab run checkpoints/base-hf --resume" in " ".join(printed.split())
    assert set(hub.repositories["ann/model"].files) == {".gitattributes"}
    assert WRITES not in printed + run_folder_texts()
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
        ("the model was retrained", []),
        ("already pushed", []),
    ],
)
def test_only_an_identical_export_is_resumed(hub, at_the_command_line, change, words):
    run = RunFolder(Path("checkpoints/base-hf"))
    command = ["export", "base", "--push", "ann/model"]
    recipe = commands._export_recipe(parse(command))
    run.write_recipe(job.read_job(recipe)[0].stages[0].to_yaml(()))
    parent = {"path": "base", "digest": weights_digest("base")}
    run.update(created_at=0, status="failed", parent=parent, export={"to": "hf"}, proof={"verdict": "proven"})
    if change == "the model was retrained":
        write_base("base", hidden_size=64)
    if change == "already pushed":
        run.update(pushed={"repo": "ann/model"})
    asked = commands._export_recipe(parse([*command, *words]))
    assert commands._push_is_pending(job.check(asked)) is (change is None)


def test_missing_push_permission_is_an_error_before_the_export(hub, at_the_command_line, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READS)
    monkeypatch.setattr("llm_lab.stages.export.load_model", None)  # never reached
    code, printed = at_the_command_line("export", "base", "--push", "ann/model")
    assert code == 2
    assert "read-only" in printed
    assert list(Path("checkpoints").iterdir()) == []
    assert hub.written() == []


def test_a_pipeline_with_a_push_checks_the_hub_before_training(hub, at_the_command_line, monkeypatch):
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


def test_a_dry_run_of_the_command_shows_the_push_and_does_nothing(hub, at_the_command_line):
    code, printed = at_the_command_line("export", "base", "--push", "ann/model", "--dry-run")
    assert code == 0, printed
    assert f"{hub.url}/ann/model (private) would be created, as ann" in printed
    assert "Nothing was sent" in printed
    shown = set(re.findall(r"^  (\S+) +[\d?]", printed, flags=re.MULTILINE))
    assert shown == {name for name, _ in files_of(Path("base"))} | {"README.md"}
    assert hub.written() == []
    assert not Path("checkpoints").exists()


def test_a_failed_push_leaves_no_partial_model_and_resumes(hub, in_shards):
    weights = {sha256(file.read_bytes()).hexdigest(): file.stat().st_size for file in in_shards.glob("*.safetensors")}
    hub.cut_after_bytes = 5_000_000
    with raises_with(MachineError, "connection", "The export is in shards", "same command"):
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


def test_a_short_connection_failure_is_retried_silently(hub, in_shards, monkeypatch):
    hub.cut_after_bytes = 5_000_000

    def comes_back(seconds):
        hub.cut_after_bytes = None

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", comes_back)
    assert push(hub, in_shards).files == len(files_of(in_shards))


def test_a_push_with_a_failed_commit_does_not_upload_weights_again(hub, in_shards):
    hub.refuse_commits = 503
    with raises_with(MachineError, "503", "The export is in shards"):
        push(hub, in_shards)
    hub.refuse_commits, before = None, Counter(hub.received)
    push(hub, in_shards)
    assert hub.received == before
    assert hub.read("ann/model", "config.json") == (in_shards / "config.json").read_bytes()


def test_unchanged_files_are_not_pushed_again(hub, exported):
    first, before = push(hub, exported), Counter(hub.received)
    again = push(hub, exported)
    assert again.commit == first.commit
    assert hub.received == before
    assert len(hub.repositories["ann/model"].commits) == 1


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_by_default(hub, exported, private):
    recorder = Recorder()
    assert push(hub, exported, private=private, listener=recorder).private is private
    assert hub.repositories["ann/model"].private is private
    assert any(("(private)" if private else "(public)") in notice for notice in recorder.notices)


def test_a_private_push_to_a_public_repository_is_refused(hub):
    hub.repositories["ann/model"] = Repository(private=False)
    with raises_with(UserError, "export.private", "already exists and is public", "--public"):
        find_destination("ann/model", private=True, endpoint=hub.url)
    assert find_destination("ann/model", private=False, endpoint=hub.url).private is False


def test_a_previous_model_is_deleted_in_the_same_commit_and_other_files_stay(hub, exported):
    other_files = {"notes.md": b"mine", "samples/a.json": b"{}", "samples/model.safetensors": b"kept", "old.gguf": b"g"}
    older = dict.fromkeys(
        ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json", "merges.txt"], b"x"
    )
    hub.repositories["ann/model"] = Repository(True, {**other_files, **older, "config.json": b"old"})
    recorder = Recorder()
    push(hub, exported, listener=recorder)
    found = hub.repositories["ann/model"].files
    assert set(found) == {*other_files, *(name for name, _ in files_of(exported))}
    assert {name: found[name] for name in other_files} == other_files
    assert len(hub.repositories["ann/model"].commits) == 1
    assert any("adapter_config.json" in notice for notice in recorder.notices)


def test_a_gguf_file_is_added_to_existing_weights(hub, in_tmp_path):
    Path("gguf").mkdir()
    Path("gguf/model-q8_0.gguf").write_bytes(b"GGUF")
    there = {"model.safetensors": b"x", "model-f16.gguf": b"y", "tokenizer.json": b"{}"}
    hub.repositories["ann/model"] = Repository(True, dict(there))
    push(hub, Path("gguf"))
    assert set(hub.repositories["ann/model"].files) == {*there, "model-q8_0.gguf"}


def test_a_dry_run_lists_repository_and_files_and_sends_nothing(hub, exported, monkeypatch):
    lines = describe_push("ann/model", files_of(exported), endpoint=hub.url)
    text = "\n".join(lines)
    assert f"{hub.url}/ann/model (private) would be created, as ann" in text
    for name in ("model.safetensors", "config.json", "README.md"):
        assert name in text
    assert "KiB" in text
    hub.repositories["ann/model"] = Repository(private=False)
    text = "\n".join(describe_push("ann/model", files_of(exported), private=False, endpoint=hub.url))
    assert "(public) exists and gets a new commit" in text
    assert "The push would fail" in describe_push("ann/model", [], private=True, endpoint=hub.url)[0]
    monkeypatch.delenv("HF_TOKEN")
    text = "\n".join(describe_push("ann/model", files_of(exported), endpoint=hub.url))
    assert "no Hub token" in text
    assert "model.safetensors" in text
    assert hub.written() == []


def test_the_token_never_appears_in_messages_or_files(hub, exported):
    recorder = Recorder()
    pushed = push(hub, exported, listener=recorder)
    kept = json.dumps(pushed.record()) + "".join(recorder.notices) + str(recorder.steps)
    hub.refuse_commits = 400
    (exported / "config.json").write_text((exported / "config.json").read_text() + " ")
    with pytest.raises(LabError) as caught:
        push(hub, exported)
    assert WRITES not in kept + str(caught.value) + repr(caught.value.__context__ or "")


def test_push_progress_is_reported(hub, in_shards):
    recorder = Recorder()
    push(hub, in_shards, listener=recorder)
    amounts = [done for _, done, _ in recorder.steps]
    assert amounts == sorted(amounts)
    assert len(amounts) > 3
    assert recorder.steps[-1][1] == recorder.steps[-1][2]
