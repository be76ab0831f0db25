"""The Hugging Face Hub: check whether it answers, and turn errors of its files into errors for users."""

from __future__ import annotations

import functools
import itertools
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

from llm_lab.errors import LabError, Problem, UserError, closest, did_you_mean, first_line
from llm_lab.estimate.cached_models import cached_files, is_model_file
from llm_lab.estimate.gguf_header import SUFFIX, how_to_download
from llm_lab.estimate.machine import HUB_SECONDS

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # start of a file that Git LFS has not downloaded
_SILENT: set[str] = set()  # endpoints that did not answer this process
_MOST_FOLDERS = 2_000  # maximum number of folders checked for a suggestion


def go_offline_without_hub() -> bool:
    """Switch the Hub's libraries to their cache if the Hub does not answer: they would retry for 40 seconds.

    Returns True if they use only the cache because the Hub does not answer.
    """
    import datasets.config
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and constants.ENDPOINT not in _SILENT:
        return False  # set by the user
    silent = not _answers(constants.ENDPOINT)
    if silent:
        _SILENT.add(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = silent
    return silent


@functools.cache
def _answers(endpoint: str) -> bool:
    """Return whether a connection can be made. Behind a proxy, only a request would show this: assume that it can."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlparse(endpoint)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


def look_at_model(name: str, *, key: str, what: str = "model") -> str | None:
    """Check that a model exists on the Hub, without downloading it; return a remark if that can't be known.

    what: "tokenizer" if only its tokenizer is used. Raises UserError if the Hub reports that it does not exist, or that
    it has GGUF files only.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    files = ("config.json", "adapter_config.json") if what == "model" else ("tokenizer.json", "tokenizer_config.json")
    with files_of(name, key=key, what=what):  # HfApi raises for what can't be a name
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
            return None
    silent = go_offline_without_hub()
    try:
        info = HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(hub_problem(error, key, name, what)) from None
    except Exception as error:  # network errors depend on the HTTP client, which changes between releases
        said = f"{type(error).__name__}: {first_line(error)}"
        why = "the Hub can't be reached" if silent else f"the Hub did not answer, or is disabled ({said})"
        return f"{key}: {name} is not a local folder and was not checked: {why}. {_near(name, what) or ''}".strip()
    if what == "tokenizer":
        return None
    if problem := _gguf_only(name, [file.rfilename for file in info.siblings or ()], key):
        raise UserError(problem)
    return None


def _gguf_only(name: str, files: Iterable[str], key: str) -> Problem | None:
    """Return the problem of a Hub model that has only GGUF files (the name does not say which one); None for others."""
    files = sorted(files)
    ggufs = [file for file in files if file.endswith(SUFFIX)]
    if not ggufs or "config.json" in files or "adapter_config.json" in files:
        return None
    listed = ", ".join(ggufs[:8]) + (f" and {len(ggufs) - 8} more" if len(ggufs) > 8 else "")
    fix = f"Download one of them, then name the file. {how_to_download(name, ggufs[0])}"
    return Problem(key, f"on the Hub it has GGUF files only: {listed}", value=name, fix=fix)


def require_models(names: Iterable[tuple[str, str, str]]) -> None:
    """Raise UserError for the models that a run could not load now.

    names: (dotted key, name, "model" or "tokenizer") of those on the Hub.
    """
    problems = []
    for key, name, what in names:
        if look_at_model(name, key=key, what=what) is not None:
            problems.append(hub_problem(ConnectionError("couldn't reach the Hub"), key, name, what))
    if problems:
        raise UserError(*problems)


def current_files(name: str) -> dict[str, str]:
    """Return {file: its id} of a model as loaded now: from the Hub, or from the cache if the Hub is silent."""
    from huggingface_hub import HfApi, constants

    go_offline_without_hub()
    if not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # network errors depend on the HTTP client, which changes between releases
            files = HfApi().model_info(name, timeout=10, files_metadata=True).siblings or ()
            ids = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
            return {name: id for name, id in ids.items() if id and is_model_file(name)}
    return cached_files(name)


def near_folder(name: str) -> str | None:
    """Return 'Did you mean X?' with a local folder of a similar name, such as that of a run, or None."""
    wanted = name.rstrip("/")
    try:
        found = (path for pattern in ("*", "*/*") for path in Path().glob(pattern) if path.is_dir())
        folders = list(itertools.islice(found, _MOST_FOLDERS))
    except OSError:
        return None
    near = did_you_mean(wanted, map(str, folders))
    by_name = {path.name: path for path in folders}
    last = None if near or "/" in wanted else closest(wanted, by_name)
    return f"Did you mean {by_name[last]}?" if last else near


def _near(name: str, what: str) -> str | None:
    near = did_you_mean(name, ["bytes"]) if what == "tokenizer" else None
    return near or near_folder(name)


def lfs_pointers(folder: str | Path) -> list[str]:
    """Return the names of files in a folder that are only Git LFS pointers."""
    found = []
    for file in sorted(Path(folder).glob("*")):
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(LFS_POINTER):
            found.append(file.name)
    return found


def _look_for_gguf(name: str, key: str) -> Problem | None:
    """Return the problem with a model without config.json that has GGUF files on the Hub, or None."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE or Path(name).expanduser().exists():
        return None
    with suppress(Exception):  # it is not a name, or the Hub does not answer
        info = HfApi().model_info(name, timeout=10)
        return _gguf_only(name, [file.rfilename for file in info.siblings or ()], key)
    return None


@contextmanager
def files_of(name: str | Path, *, key: str, what: str = "model") -> Iterator[None]:
    """Turn everything that libraries raise while they read a user's or the Hub's files into a UserError with the name.

    Damaged files raise dozens of types, from a SafetensorError to a TypeError deep in a config class. If the Hub does
    not answer quickly, a name is only looked up in the cache.
    """
    if not Path(name).expanduser().exists():
        go_offline_without_hub()
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        raise UserError(hub_problem(error, key, str(name), what)) from error


def hub_problem(error: BaseException, key: str, name: str, what: str) -> Problem:
    """Explain why something could not be loaded from disk or the Hub, and how to fix it."""
    if pointers := lfs_pointers(name):
        why = f"{pointers[0]} is a Git LFS pointer: the file itself was not downloaded"
        return Problem(key, why, value=name, fix="Download it: git lfs pull, in that folder.")
    text = str(error)
    lowered = text.lower()
    if "config.json" in lowered and (problem := _look_for_gguf(name, key)):
        return problem
    # The Hub's answer to an unknown name mentions private and gated repositories, too.
    is_unknown = "Repository Not Found" in text or "not a local folder and is not a valid model identifier" in text
    if not is_unknown and ("gated" in lowered or "401" in text or "403" in text):
        why = f"this {what} is gated or private"
        fix = "Accept its terms on its page, then `hf auth login` or set HF_TOKEN."
    elif "trust_remote_code" in text:
        why = f"this {what} contains custom code, which runs only with your permission"
        fix = "Review the code first. Then name this model on the command line, with --trust-remote-code."
    elif is_unknown or "404" in text:
        why = f"no {what} with this name, locally or on the Hub"
        fix = "Check the spelling; a private one requires `hf auth login`."
    elif any(word in lowered for word in ("connect", "offline", "resolve", "timed out", "couldn't reach")):
        why = f"no such local folder, no {what} with this name in the Hub's cache, and the Hub can't be reached"
        fix = "Check the path, the network, and HF_HUB_OFFLINE."
    elif "does not support" in text and "attention" in lowered:
        why = f"it does not support this attention kernel: {text.splitlines()[0][:120]}"
        fix = "Set train.attn_implementation=eager."
    elif Path(name).expanduser().exists():
        fix = "Its files may be damaged or incomplete. Use another checkpoint, or make it again."
        return Problem(key, f"the {what} can't be loaded: {first_line(error)}", value=name, fix=fix)
    else:
        why, fix = f"the {what} can't be loaded: {first_line(error)}", None
    if fix and (near := _near(name, what)):
        fix = f"{near} {fix}"
    return Problem(key, why, value=name, fix=fix)
