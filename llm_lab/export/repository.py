"""Where a push goes: whether the Hub lets this token write there, asked before anything long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm_lab.errors import LabError, MachineError, Problem, UserError
from llm_lab.hf.load import quiet_libraries

KEY = "export.push"
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN; a token with write permission is made in your Hub settings."

ONLY_READS = ("read", "no_access")


@dataclass(frozen=True)
class Destination:
    """A repository that may be written to. exists: it is there already; private: as it is or will be made."""

    repo: str
    endpoint: str
    user: str
    exists: bool
    private: bool

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{self.repo}"


def find_destination(repo: str, *, private: bool = True, endpoint: str | None = None) -> Destination:
    """Ask the Hub whether a repository may be written to, or made; changes nothing.

    UserError: no token, or one that may not write there, or a repository that all can see where a private one is
    wanted. MachineError: the Hub can't be reached.
    """
    quiet_libraries()
    api, token = connect(endpoint)
    from huggingface_hub.errors import RepositoryNotFoundError

    with errors_in_words(repo, api, token):
        identity = api.whoami()
        user = identity["name"]
        try:
            found = api.model_info(repo)
        except RepositoryNotFoundError:
            found = None
        _require_permission(repo, identity)
        if found is None:
            return Destination(repo, api.endpoint, user, exists=False, private=private)
        is_answered(api, f"{repo}/auth-check/write")  # a mirror may lack this question
    if private and not found.private:
        fix = "Take --public (export.private=false) if that is meant, or name another repository."
        raise UserError(Problem("export.private", f"{repo} is there and can be seen by all", value=True, fix=fix))
    return Destination(repo, api.endpoint, user, exists=True, private=bool(found.private))


def _require_permission(repo: str, identity: dict[str, Any]) -> None:
    """UserError where what the Hub says of the token rules out that it writes to this owner's repositories."""
    owner, user = repo.split("/")[0], identity["name"]
    token = identity.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        why = f"the token of {user} may only read"
        raise UserError(Problem(KEY, why, value=repo, fix=LOG_IN))
    organizations = [one["name"] for one in identity.get("orgs", []) if one.get("roleInOrg") not in ONLY_READS]
    owners = [user, *organizations]
    if owner.lower() not in (name.lower() for name in owners):
        why = f"the token is of {user}, who can't write to {owner}"
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


def connect(endpoint: str | None) -> tuple[Any, str]:
    """Return the Hub's client and the token, of the environment or the login. UserError where there is none."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise UserError(Problem(KEY, "there is no token for the Hub", fix=LOG_IN))
    return HfApi(endpoint=endpoint, token=token), token


def is_answered(api: Any, question: str) -> bool:
    """Ask the Hub about models; False where it does not know the question, its own error where it says no."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().get(f"{api.endpoint}/api/models/{question}", headers=build_hf_headers(token=api.token))
    if response.status_code == 404:
        return False
    hf_raise_for_status(response)
    return True


@contextmanager
def errors_in_words(repo: str, api: Any, token: str, stands: str = "") -> Iterator[None]:
    """Turn what the Hub's client raises into errors for users, without the token. stands: what is kept till then."""
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        kind, why, fix = _explain(error, api.endpoint)
        text = " ".join(part for part in (fix, stands) if part)
        raise kind(Problem(KEY, why.replace(token, "***"), value=repo, fix=text.replace(token, "***"))) from None


def _explain(error: BaseException, endpoint: str) -> tuple[type[LabError], str, str]:
    """Return (kind of error, why, what to do)."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    while not _is_of_the_network(error) and getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__  # an upload's own error wraps what happened
    response = getattr(error, "response", None)
    if response is not None:
        status = response.status_code
        said = response.headers.get("X-Error-Message") or str(error).strip().splitlines()[0]
        if status == 401:
            return UserError, "the Hub does not know this token", LOG_IN
        if status == 403:
            return UserError, f"the token may not do this: {said}", LOG_IN
        if status == 404:
            return UserError, f"there is no such place, or the token may not see it: {said}", LOG_IN
        return MachineError, f"the Hub answered {status}: {said}", "Try again later."
    if isinstance(error, OfflineModeIsEnabled):
        return MachineError, "HF_HUB_OFFLINE stands in the environment", "Take it out to send."
    if isinstance(error, HFValidationError):
        return UserError, f"the Hub takes no such name: {str(error).splitlines()[0]}", ""
    if _is_of_the_network(error):
        return MachineError, f"the connection to {endpoint} failed ({type(error).__name__})", "Check the network."
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return MachineError, f"it was not sent: {first[:300]}", ""


def _is_of_the_network(error: BaseException) -> bool:
    # By name: the Hub's client has changed its HTTP library between its versions.
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in ("httpx", "httpx2")
