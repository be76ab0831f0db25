"""The push of an exported folder to the Hub: asked for before anything long, sent in one commit, taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.events import Listener, Notice, Progress
from llm_lab.hf.load import quiet_libraries
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import describe_parent

from .repository import Destination, connect, errors_in_words, find_destination, is_answered

# Sent on its own, so that the listener can tell how far it is; what is smaller goes together.
LARGE_BYTES = 2**20
# What an older model may have left in the repository and a loader would mix with the new one.
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json",
    "adapter_model.bin", "adapter_config.json", "base_model.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.*",
)  # fmt: skip


@dataclass(frozen=True)
class Pushed:
    """What was sent where; `record()` is what run.json keeps."""

    repo: str
    endpoint: str
    url: str
    commit: str
    commit_url: str
    private: bool
    files: int
    size_bytes: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Return (path, bytes) of every file of an exported folder that is sent: all but hidden ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path.relative_to(folder), path) for path in paths]
    return [
        (name.as_posix(), path.stat().st_size)
        for name, path in names
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    ]


def describe_push(
    repo: str, files: Sequence[tuple[str, int | None]], *, private: bool = True, endpoint: str | None = None
) -> list[str]:
    """Return the lines of a dry run: repository, who would see it, and the files; sends nothing."""
    try:
        found = find_destination(repo, private=private, endpoint=endpoint)
    except LabError as error:
        lines = [f"It would be refused: {error}"]
    else:
        seen = "private" if found.private else "public"
        what = "is there: a commit is added" if found.exists else "would be made"
        lines = [f"{found.url} ({seen}) {what}, as {found.user}"]
    total = sum(size or 0 for _, size in files)
    width = max((len(name) for name, _ in files), default=0)
    lines += [f"  {name:{width}}  {'?' if size is None else _size(size):>10}" for name, size in files]
    return [*lines, f"{len(files)} files, {_size(total)}. Nothing was sent."]


def is_unsent(run: RunFolder) -> bool:
    """Tell whether a run has made and proven an export, of a model that is still the same, and has not sent it."""
    facts = run.facts()
    parent = facts.get("parent") or {}
    made = facts.get("export") and facts["proof"]["verdict"] != "failed" and not facts.get("pushed")
    return bool(made and run.status() != "running" and describe_parent(parent["path"]) == parent)


def push_folder(folder: Path, destination: Destination, listener: Listener, *, message: str, again: str) -> Pushed:
    """Send an exported folder to the Hub as one commit: the repository shows all of it, or nothing.

    Objects that have come before (in a push that broke) are not sent again. Files of other names stay, but for
    those of an older model. again: the command that takes up a push that broke. LabErrors as `find_destination`.
    """
    quiet_libraries()
    api, token = connect(destination.endpoint)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo, files = destination.repo, files_of(folder)
    total = sum(size for _, size in files)
    with (
        errors_in_words(repo, api, token, f"The export stands in {folder}; `{again}` sends what is missing."),
        ExitStack() as stack,
    ):
        if not destination.exists:
            api.create_repo(repo, private=destination.private, exist_ok=True)
            listener(Notice(f"made {destination.url} ({'private' if destination.private else 'public'})"))
        stale = _stale(api.list_repo_files(repo), [name for name, _ in files])
        if stale:
            listener(Notice(f"{repo}: of an older model, taken away in the same commit: {', '.join(stale)}"))
        if not is_answered(api, f"{repo}/xet-write-token/main"):
            stack.enter_context(_without_xet())
        listener(Notice(f"sending {len(files)} files, {_size(total)}, to {destination.url}"))
        additions = {name: CommitOperationAdd(name, folder / name) for name, _ in files}
        sent = 0
        for name, size in files:
            if size >= LARGE_BYTES:
                listener(Progress(f"sending {name} (MiB)", sent // 2**20, total // 2**20))
                api.preupload_lfs_files(repo, [additions[name]], free_memory=False)
            sent += size
        listener(Progress("sending (MiB)", max(total // 2**20, 1), max(total // 2**20, 1)))
        # Not upload_folder: with hf_xet that makes several commits, and a break leaves half a model to be seen.
        operations = [*(CommitOperationDelete(name) for name in stale), *additions.values()]
        done = api.create_commit(repo, operations, commit_message=message)
    return Pushed(
        repo=repo,
        endpoint=destination.endpoint,
        url=destination.url,
        commit=done.oid,
        commit_url=done.commit_url,
        private=destination.private,
        files=len(files),
        size_bytes=total,
    )


def _stale(there: Sequence[str], sent: Sequence[str]) -> list[str]:
    """Return the files of an older model that would contradict the one that is sent; beside GGUF, all stay."""
    if not any(name.endswith(".safetensors") for name in sent):
        return []
    old = [name for name in there if "/" not in name and any(fnmatch(name, pattern) for pattern in MODEL_FILES)]
    return sorted(set(old) - set(sent))


@contextmanager
def _without_xet() -> Iterator[None]:
    """Let the Hub's client send by Git LFS to a hub that has no Xet: with hf_xet installed it would try Xet alone."""
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
