"""Push an exported folder to the Hub: check permission first, make one commit, resume a failed push."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, MachineError, Problem, UserError, first_line
from llm_lab.estimate.adapter_base import weights_digest
from llm_lab.estimate.formatting import size as format_size
from llm_lab.events import Listener, Notice, Progress
from llm_lab.hf.load import quiet_libraries
from llm_lab.runs.folder import RunFolder

KEY = "export.push"
LOG_IN = "Log in with `hf auth login` or set HF_TOKEN, with a token that has write permission."
READ_ONLY = ("read", "no_access")  # roles in an organization
# Larger files are uploaded one by one, to report progress; smaller ones are part of the commit.
LARGE_BYTES = 2**20
# Files of a previous model in the repository, which a program that loads the model would mix with the new ones.
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json",
    "adapter_model.bin", "adapter_config.json", "base_model.json", "config.json", "generation_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.*",
)  # fmt: skip


@dataclass(frozen=True)
class Destination:
    """A repository that this token can write to. exists: it exists already. private: as it is or will be created."""

    repo: str
    endpoint: str
    user: str
    exists: bool
    private: bool

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{self.repo}"


def find_destination(repo: str, *, private: bool = True, endpoint: str | None = None) -> Destination:
    """Ask the Hub whether a repository can be written to or created, without changing anything.

    Raises UserError without a token that has write permission, or if the repository is public but `private` is set;
    MachineError if the Hub can't be reached.
    """
    quiet_libraries()
    api, token = connect(endpoint)
    from huggingface_hub.errors import RepositoryNotFoundError

    with _user_errors(repo, api, token):
        identity = api.whoami()
        user = identity["name"]
        try:
            found = api.model_info(repo)
        except RepositoryNotFoundError:
            found = None
        _require_permission(repo, identity)
        if found is None:
            return Destination(repo, api.endpoint, user, exists=False, private=private)
        _endpoint_exists(api, f"{repo}/auth-check/write")  # a mirror may not support this endpoint
    if private and not found.private:
        fix = "Use --public (export.private=false) to push there anyway, or name another repository."
        raise UserError(Problem("export.private", f"{repo} already exists and is public", value=True, fix=fix))
    return Destination(repo, api.endpoint, user, exists=True, private=bool(found.private))


def _require_permission(repo: str, identity: dict[str, Any]) -> None:
    """Raise UserError if the Hub says that the token can't write to this owner's repositories."""
    owner, user = repo.split("/")[0], identity["name"]
    token = identity.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        why = f"the token of {user} is read-only"
        raise UserError(Problem(KEY, why, value=repo, fix=LOG_IN))
    organizations = [one["name"] for one in identity.get("orgs", []) if one.get("roleInOrg") not in READ_ONLY]
    owners = [user, *organizations]
    if owner.lower() not in (name.lower() for name in owners):
        why = f"the token belongs to {user}, who can't write to {owner}"
        raise UserError(Problem(KEY, why, value=repo, allowed=", ".join(f"{name}/NAME" for name in owners)))
    scopes = token.get("fineGrained", {}).get("scoped")
    if token.get("role") == "fineGrained" and isinstance(scopes, list):
        names = {
            str(scope.get("entity", {}).get("name", "")).lower()
            for scope in scopes
            if "repo.write" in scope.get("permissions", [])
        }
        if not names & {owner.lower(), repo.lower()}:
            why = f"the token of {user} is fine-grained and has no write permission for {owner}"
            raise UserError(Problem(KEY, why, value=repo, fix=LOG_IN))


def require_token() -> str:
    """Return the Hub token from HF_TOKEN or the login; raise UserError if there is none. The Hub is not asked."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(Problem(KEY, "no Hub token found", fix=LOG_IN))
    return token


def connect(endpoint: str | None) -> tuple[Any, str]:
    """Return the Hub client and the token from HF_TOKEN or the login. Raises UserError if there is none."""
    from huggingface_hub import HfApi

    token = require_token()
    return HfApi(endpoint=endpoint, token=token), token


def _endpoint_exists(api: Any, path: str) -> bool:
    """GET an endpoint under api/models; return False for 404, and raise the Hub's error if it refuses."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().get(f"{api.endpoint}/api/models/{path}", headers=build_hf_headers(token=api.token))
    if response.status_code == 404:
        return False
    hf_raise_for_status(response)
    return True


@contextmanager
def _user_errors(repo: str, api: Any, token: str, kept: str = "") -> Iterator[None]:
    """Turn errors of the Hub client into errors for users, without the token. kept: where the export is kept."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        kind, why, fix = _explain(error, api.endpoint)
        text = " ".join(part for part in (fix, kept) if part)
        raise kind(Problem(KEY, why.replace(token, "***"), value=repo, fix=text.replace(token, "***"))) from None


def _explain(error: BaseException, endpoint: str) -> tuple[type[LabError], str, str]:
    """Return (class of the error, why, fix)."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    while not _is_network_error(error) and getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__  # an upload error wraps its cause
    response = getattr(error, "response", None)
    if response is not None:
        status = response.status_code
        said = response.headers.get("X-Error-Message") or str(error).strip().splitlines()[0]
        if status == 401:
            return UserError, "the Hub does not accept this token", LOG_IN
        if status == 403:
            return UserError, f"the token lacks the permission: {said}", LOG_IN
        if status == 404:
            return UserError, f"it does not exist, or the token can't read it: {said}", LOG_IN
        return MachineError, f"the Hub answered {status}: {said}", "Try again later."
    if isinstance(error, OfflineModeIsEnabled):
        return MachineError, "HF_HUB_OFFLINE is set", "Unset it to push."
    if isinstance(error, HFValidationError):
        return UserError, f"invalid repository name: {str(error).splitlines()[0]}", ""
    if _is_network_error(error):
        return MachineError, f"the connection to {endpoint} failed ({type(error).__name__})", "Check the network."
    return MachineError, f"the push failed: {first_line(error)}", ""


def _is_network_error(error: BaseException) -> bool:
    # By name, since the HTTP library differs between versions of the Hub client.
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in ("httpx", "httpx2")


@dataclass(frozen=True)
class Pushed:
    """What was pushed, and where."""

    repo: str
    endpoint: str
    url: str
    commit: str
    commit_url: str
    private: bool
    files: int
    size_bytes: int

    def record(self) -> dict[str, Any]:
        """Return the push for run.json."""
        return asdict(self)


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Return (path, bytes) of every file of an exported folder, without hidden ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if links := [path for path in folder.rglob("*") if path.is_symlink()]:
        why = "it is a link, and what it points to would be published"
        raise UserError(Problem(str(links[0]), why, fix="Export again."))
    names = [(path.relative_to(folder), path) for path in paths]
    return [
        (name.as_posix(), path.stat().st_size)
        for name, path in names
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    ]


def describe_push(
    repo: str, files: Sequence[tuple[str, int | None]], *, private: bool = True, endpoint: str | None = None
) -> list[str]:
    """Return the lines of a dry run: the repository, its visibility, and the files. Sends nothing."""
    try:
        found = find_destination(repo, private=private, endpoint=endpoint)
    except LabError as error:
        lines = [f"The push would fail: {error}"]
    else:
        visibility = "private" if found.private else "public"
        what = "exists and gets a new commit" if found.exists else "would be created"
        lines = [f"{found.url} ({visibility}) {what}, as {found.user}"]
    total = sum(size or 0 for _, size in files)
    width = max((len(name) for name, _ in files), default=0)
    lines += [f"  {name:{width}}  {'?' if size is None else format_size(size):>10}" for name, size in files]
    return [*lines, f"{len(files)} files, {format_size(total)}. Nothing was sent."]


def is_unsent(run: RunFolder) -> bool:
    """Return whether a run has a verified export that is not pushed yet, of a model that has not changed since."""
    facts = run.facts()
    parent = facts.get("parent") or {}
    made = facts.get("export") and facts["proof"]["verdict"] != "failed" and not facts.get("pushed")
    return bool(made and run.status() != "running" and weights_digest(parent["path"]) == parent.get("digest"))


def push_folder(folder: Path, destination: Destination, listener: Listener, *, message: str, retry: str) -> Pushed:
    """Push an exported folder to the Hub as one commit, so that the repository has all of it or nothing.

    Files that a failed push has uploaded are not sent again. Files of a previous model are deleted, others stay.
    retry: the command that resumes a failed push. Raises errors like `find_destination`.
    """
    quiet_libraries()
    api, token = connect(destination.endpoint)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo, files = destination.repo, files_of(folder)
    total = sum(size for _, size in files)
    with (
        _user_errors(repo, api, token, f"The export is in {folder}; `{retry}` resumes the push."),
        ExitStack() as stack,
    ):
        if not destination.exists:
            api.create_repo(repo, private=destination.private, exist_ok=True)
            listener(Notice(f"created {destination.url} ({'private' if destination.private else 'public'})"))
        stale = _stale(api.list_repo_files(repo), [name for name, _ in files])
        if stale:
            listener(Notice(f"{repo}: files of a previous model, deleted in the same commit: {', '.join(stale)}"))
        if not _endpoint_exists(api, f"{repo}/xet-write-token/main"):
            stack.enter_context(_without_xet())
        listener(Notice(f"pushing {len(files)} files, {format_size(total)}, to {destination.url}"))
        additions = {name: CommitOperationAdd(name, folder / name) for name, _ in files}
        sent = 0
        for name, size in files:
            if size >= LARGE_BYTES:
                listener(Progress(f"pushing {name} (MiB)", sent // 2**20, total // 2**20))
                api.preupload_lfs_files(repo, [additions[name]], free_memory=False)
            sent += size
        listener(Progress("pushing (MiB)", max(total // 2**20, 1), max(total // 2**20, 1)))
        # Not upload_folder: with hf_xet it makes several commits, so a failure would leave half a model visible.
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


def _stale(present: Sequence[str], sent: Sequence[str]) -> list[str]:
    """Return the files of a previous model that conflict with the new one; none for GGUF files."""
    if not any(name.endswith(".safetensors") for name in sent):
        return []
    old = [name for name in present if "/" not in name and any(fnmatch(name, pattern) for pattern in MODEL_FILES)]
    return sorted(set(old) - set(sent))


@contextmanager
def _without_xet() -> Iterator[None]:
    """Make the Hub client use Git LFS, for a hub without Xet: with hf_xet installed, it tries only Xet."""
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
