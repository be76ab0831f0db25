"""Load datasets from the Hugging Face Hub, with clear errors if one can't be loaded."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger as get_logger
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of, similar_path
from llm_lab.hf.hub import go_offline_without_hub

_SECRET = re.compile(r"hf_[A-Za-z0-9]{6,}|(?<=[Bb]earer )\S+")


def load_hub(path: str, *, subset: str | None, split: str, key: str) -> Any:
    """Return a `datasets.Dataset`, downloading it if it is not cached. Raises UserError if it can't be loaded."""
    import datasets

    with hub_errors(path, subset, split, key):
        return datasets.load_dataset(path, subset, split=split)


def stream_hub(path: str, *, subset: str | None, split: str, key: str) -> Any:
    """Return a `datasets.IterableDataset`, which downloads as it is read. Raises UserError if it can't be loaded."""
    import datasets

    with hub_errors(path, subset, split, key):
        return datasets.load_dataset(path, subset, split=split, streaming=True)


@contextmanager
def hub_errors(path: str, subset: str | None, split: str, key: str) -> Iterator[None]:
    """Convert errors of the Hub's libraries to a UserError with an explanation."""
    import datasets

    # The Hub's library exports the error of the HTTP client that it uses, which differs between versions.
    from huggingface_hub.errors import HTTPError

    # The HTTP client logs each retry to standard error; the final error is reported below.
    get_logger("huggingface_hub").setLevel("ERROR")
    go_offline_without_hub()
    try:
        yield
    # OSError includes the Hub's HTTP errors and Python's ConnectionError.
    except (datasets.exceptions.DatasetsError, OSError, HTTPError, ValueError, RuntimeError) as error:
        raise UserError(_explain(error, path, subset, split, key)) from error


def look_at_hub(path: str, *, subset: str | None, split: str, key: str) -> str | None:
    """Check that a dataset exists on the Hub and that this user has access; return a warning if the Hub is unreachable.

    Raises UserError if the Hub reports that the dataset does not exist or is gated.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if go_offline_without_hub():
        return f"{key}: {path} was not checked: the Hub can't be reached"
    if _is_offline():
        return f"{key}: {path} was not checked: the Hub is disabled (HF_HUB_OFFLINE)"
    try:
        if HfApi().dataset_info(path, timeout=10).gated:
            HfApi().auth_check(path, repo_type="dataset")  # the page of a gated dataset is public
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise UserError(_explain(error, path, subset, split, key)) from None
    except HfHubHTTPError as error:
        return f"{key}: {path} was not checked: the Hub answered {error.response.status_code}"
    except Exception:  # network errors depend on the HTTP client, which changes between releases
        return f"{key}: {path} was not checked: the Hub can't be reached"
    return None


def require_on_hub(path: str, *, key: str, subset: str | None = None, split: str = "train") -> str | None:
    """Check that a dataset could be loaded now, from the Hub or from its cache; return a warning as look_at_hub does.

    Raises UserError also if it is not cached and the Hub can't be asked whether it exists.
    """
    remark = look_at_hub(path, subset=subset, split=split, key=key)
    if remark is None or _is_cached(path):
        return remark
    reason = remark.rpartition("was not checked: ")[2]
    hint = similar_path(path) or "Check the path, or use a local file or a built-in dataset."
    why = f"There is no such file or folder, no such dataset in the Hub's cache, and {reason}"
    raise UserError(Problem(f"{key}.path", why, value=path, fix=f"{hint} Hub datasets are named owner/name."))


def _is_cached(path: str) -> bool:
    """Return whether the datasets library can load a Hub dataset from its cache."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    owner, slash, name = path.rpartition("/")
    folder = (
        Path(config.HF_DATASETS_CACHE).expanduser() / f"{owner}{'___' if slash else ''}{camelcase_to_snakecase(name)}"
    )
    return any(one.is_dir() for one in folder.glob("*/*/*"))


def hub_texts(rows: Any, column: str) -> Iterator[str]:
    """Yield one column of a `datasets.Dataset`; null and blank rows are skipped."""
    for batch in rows.select_columns([column]).iter(batch_size=1000):
        for value in batch[column]:
            if value and not value.isspace():
                yield value


def _explain(error: BaseException, path: str, subset: str | None, split: str, key: str) -> Problem:
    causes = list(_causes(error))
    names = {type(cause).__name__ for cause in causes}
    message = _SECRET.sub("***", " ".join(str(cause) for cause in causes))
    page = f"https://huggingface.co/datasets/{path}"
    where = f"{key}.path"
    if choices := _listed(message, r"Config name is missing|BuilderConfig '[^']*' not found"):
        if subset is None:
            return Problem(f"{key}.subset", f"{path} has several subsets: name one", allowed=one_of(choices))
        return Problem(
            f"{key}.subset",
            f"{path} has no such subset",
            value=subset,
            allowed=one_of(choices),
            fix=did_you_mean(subset, choices),
        )
    if choices := _listed(message, r"Unknown split|Bad split"):
        return Problem(
            f"{key}.split",
            f"{path} has no such split",
            value=split,
            allowed=one_of(choices),
            fix=did_you_mean(split, choices),
        )
    if "gated dataset" in message or "GatedRepoError" in names:
        return Problem(
            where,
            "This dataset is gated: its terms must be accepted first",
            value=path,
            fix=f"Accept them at {page}, then log in with `hf auth login` or set HF_TOKEN.",
        )
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError", "HFValidationError"}:
        return Problem(
            where,
            "No such local file, and no such dataset on the Hub (or it is private)",
            value=path,
            fix=f"{similar_path(path) or f'Check the name at {page}.'} "
            "For a private dataset, log in with `hf auth login` or set HF_TOKEN.",
        )
    if _is_offline() and not go_offline_without_hub():
        return Problem(
            where,
            "No such local file, not in the Hub's cache, and downloads are disabled (HF_HUB_OFFLINE)",
            value=path,
            fix=f"{similar_path(path) or ''} Unset HF_HUB_OFFLINE to download it, or use a local file.",
        )
    if "Couldn't reach" in message or _is_network(causes):
        return Problem(
            where,
            "No such local file, and the Hugging Face Hub can't be reached",
            value=path,
            fix=f"{similar_path(path) or ''} Check the network, or use a local file or a built-in dataset.",
        )
    if "Dataset scripts are no longer supported" in message:
        return Problem(
            where,
            "This dataset is a Python script; scripts are not supported",
            value=path,
            fix=f"Download Parquet files from {page}/tree/refs%2Fconvert%2Fparquet and use their folder as the path.",
        )
    if any(getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for cause in causes):
        return Problem(where, "The disk is full", value=path, fix="Free some space, or set HF_HOME to a larger disk.")
    last = _SECRET.sub("***", str(causes[-1])).strip().splitlines() or [type(error).__name__]
    return Problem(where, f"The datasets library can't read it: {last[0][:300]}", value=path, fix=f"See {page}.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _listed(message: str, pattern: str) -> list[str]:
    """Return the names that the datasets library lists in an error message, [] for other messages."""
    found = re.search(rf"(?s)(?:{pattern}).*?(\[.*?\])", message)
    if not found:
        return []
    try:
        return [str(name) for name in ast.literal_eval(found[1])]
    except (ValueError, SyntaxError):
        return []


def _is_offline() -> bool:
    import datasets
    import huggingface_hub.constants

    return bool(datasets.config.HF_HUB_OFFLINE or huggingface_hub.constants.HF_HUB_OFFLINE)


def _is_network(causes: list[BaseException]) -> bool:
    bases = {base.__name__ for cause in causes for base in type(cause).__mro__}
    return bool(bases & {"TransportError", "ConnectionError", "TimeoutError"})
