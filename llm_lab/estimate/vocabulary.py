"""How many tokens a tokenizer will have, found without importing transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BYTE_VOCABULARY = 257  # 256 bytes and the end-of-text token
ASSUMED_HUB_VOCABULARY = 50_257  # GPT-2's, until the tokenizer has been downloaded


def vocabulary_size(tokenizer: Any) -> tuple[int, bool]:
    """Return (entries, whether that is certain) for a recipe's tokenizer.

    A BPE that is still to be trained has at most what is asked for; one on the Hub is assumed.
    """
    if tokenizer == "bytes":
        return BYTE_VOCABULARY, True
    if isinstance(tokenizer, dict) and "bpe" in tokenizer:
        return int(tokenizer["bpe"]), False
    if isinstance(tokenizer, str):
        counted = _count_tokens(Path(tokenizer).expanduser())
        if counted:
            return counted, True
    return ASSUMED_HUB_VOCABULARY, False


def _count_tokens(folder: Path) -> int | None:
    for file in (folder / "tokenizer.json", folder / "model" / "tokenizer.json"):
        if file.is_file():
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
                vocabulary = data["model"]["vocab"]
                ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
                added = [token["id"] for token in data.get("added_tokens", [])]
                return len(set(ids) | set(added))
            except (OSError, ValueError, KeyError, TypeError):
                return None
    return None
