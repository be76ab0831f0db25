"""Calls that the worker of a chat answers. It holds one model; the conversation comes with each call.

So nothing is lost if the worker ends: the next call loads the model again and includes the messages.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_lab.chat.conversation_files import are_messages
from llm_lab.chat.decoding import ChatSettings
from llm_lab.chat.session import ChatSession
from llm_lab.chat.web_search import hits_from
from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.compare import release_memory
from llm_lab.hf.adapter import is_adapter
from llm_lab.hf.configs import has_own_code
from llm_lab.runner import load as load_checkpoint
from llm_lab.runs.folder import find_checkpoint
from llm_lab.safe_text import StreamRedactor, redact

TRUST = "trust_remote_code"  # the key of a problem that the user can resolve with yes
EVERY_SECONDS = 0.3  # between two reports on the progress of loading
Pieces = Generator[dict[str, Any], None, dict[str, Any]]


@dataclass
class _Loaded:
    """The model of this process. stamp: identifies the loaded files, so that a retrained run is reloaded."""

    stamp: tuple[Any, ...]
    session: ChatSession
    seconds: float


_loaded: list[_Loaded] = []  # at most one


def load(model: str, trust: bool = False) -> Pieces:
    """Load a model, unless it is loaded; yield {"loading": ...}, and return a description of it."""
    loaded = yield from _open(model, trust)
    return _describe(loaded)


def reply(
    model: str,
    text: str,
    messages: list[dict[str, Any]],
    settings: Mapping[str, Any],
    system: str | None = None,
    hits: Sequence[Mapping[str, Any]] = (),
    trust: bool = False,
) -> Pieces:
    """Yield {"loading": ...} and {"about": ...} if the model is not loaded yet, then the pieces of a reply.

    messages: the conversation so far. hits: search results that the model gets with the text. Returns the whole reply,
    why it stopped, its numbers, and the sources as the model got them.
    """
    if not are_messages(messages):
        raise UserError(Problem("messages", "this is not a conversation"))
    loaded = yield from _open(model, trust)
    yield {"about": _describe(loaded)}
    session = loaded.session
    session.settings = ChatSettings(**settings)
    session.take_up(messages, system)
    redactor = StreamRedactor()
    pieces = session.reply(text, hits_from(hits))
    try:
        for piece in pieces:
            if shown := redactor.push(piece):
                yield {"piece": shown}
    finally:
        pieces.close()
    if shown := redactor.rest():
        yield {"piece": shown}
    asked, answered = session.messages[-2:]
    assert session.last_stats is not None
    return {
        "content": redact(answered["content"]),
        "ended": bool(answered.get("ended")),
        "sources": asked.get("sources", []),
        "notice": session.notice,
        **asdict(session.last_stats),
    }


def _open(model: str, trust: bool) -> Generator[dict[str, Any], None, _Loaded]:
    folder = find_checkpoint(model)
    stamp = (folder, trust, *_newest(folder))
    if not (_loaded and _loaded[0].stamp == stamp):
        _loaded.clear()
        release_memory()
        downloaded = _Download(folder)
        # The model loads in a thread, so that this one can report. If the caller leaves, this one still waits for it.
        with ThreadPoolExecutor(1) as thread:
            loading = thread.submit(_load, model, folder, trust, stamp)
            while not wait([loading], EVERY_SECONDS).done:
                yield {"loading": downloaded.bytes()}
            loading.result()
    return _loaded[0]


def _load(model: str, folder: str, trust: bool, stamp: tuple[Any, ...]) -> None:
    started = time.monotonic()
    if not trust and has_own_code(folder):
        why = f"{model} contains custom code, which runs only with your permission"
        raise UserError(Problem(TRUST, why, fix="Review the code first."))
    weights, tokenizer = load_checkpoint(model, trust_remote_code=trust)
    session = ChatSession(weights, tokenizer, name=model)
    _loaded.append(_Loaded(stamp, session, time.monotonic() - started))


def _newest(folder: str) -> tuple[int, ...]:
    """Return when the files of a model last changed; () for a name on the Hub."""
    path = Path(folder)
    files = [path] if path.is_file() else path.iterdir() if path.is_dir() else []
    return tuple(sorted(file.stat().st_mtime_ns for file in files if file.is_file())[-1:])


class _Download:
    """How much of a model has been downloaded into the Hub's cache; nothing for a model on this machine."""

    def __init__(self, folder: str) -> None:
        self._blobs: Path | None = None
        if not Path(folder).exists():
            from huggingface_hub import constants
            from huggingface_hub.file_download import repo_folder_name

            self._blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=folder, repo_type="model"), "blobs")
        self._before = self._size()

    def bytes(self) -> int:
        """Return the bytes that have been downloaded since the start."""
        return max(0, self._size() - self._before)

    def _size(self) -> int:
        if self._blobs is None or not self._blobs.is_dir():
            return 0
        return sum(_size_of(file) for file in self._blobs.iterdir())


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the file was renamed in the meantime
        return 0


def _describe(loaded: _Loaded) -> dict[str, Any]:
    session = loaded.session
    weights = session.model
    return {
        "model": session.name,
        "folder": str(loaded.stamp[0]),
        "mode": session.mode,
        "context": session.context_length,
        "max_new_tokens": session.usual_length,
        "parameters": sum(parameter.numel() for parameter in weights.parameters()),
        "adapter": is_adapter(loaded.stamp[0]),
        "device": str(weights.device.type),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "seconds": loaded.seconds,
        "no_system": _why_no_system(session),
    }


def _why_no_system(session: ChatSession) -> str | None:
    """Return why the model does not support a system prompt, or None."""
    try:
        session.set_system("You are a helpful assistant.")
    except UserError as error:
        return str(error)
    session.set_system("")
    return None


CALLS = {"load": load, "reply": reply}
