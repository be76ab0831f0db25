"""Text files for tests of the code that reads them, and whether each is read or refused."""

import json
from pathlib import Path

import pytest

from llm_lab.data.sources import open_source
from llm_lab.errors import UserError


def write_file(name: str, content: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def write_jsonl(name: str, *rows: object) -> str:
    return write_file(name, "".join(json.dumps(row) + "\n" for row in rows))


def documents(path: str, **settings) -> list[str]:
    return list(open_source(path, **settings).documents())


def refusal(path: str, **settings) -> str:
    with pytest.raises(UserError) as caught:
        documents(path, **settings)
    return str(caught.value)
