"""samples.md: the texts that a model generated at each evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llm_lab.safe_text import redact

from .disk import write_atomically
from .folder import RunFolder

NO_PROMPT = "(none)"


def add_samples(run: RunFolder, step: int, samples: list[tuple[str, str]]) -> None:
    """Add (prompt, text) pairs of a step to samples.md, replacing what a killed process wrote for this step."""
    before = [text for at, text in run.samples() if at != step]
    lines = [
        f"## Step {step}\n",
        *(f"Prompt: `{_one_line(redact(prompt))}`\n\n> {_quoted(redact(text))}\n" for prompt, text in samples),
    ]
    write_atomically(run.samples_path, "".join(before) + "\n".join(lines) + "\n")


def samples_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield the (prompt, text) pairs of one step, from its part of samples.md."""
    parts = re.split(r"(?m)^Prompt: `(.*)`$\n\n(?=> )", text)
    for prompt, body in zip(parts[1::2], parts[2::2], strict=True):
        yield read_prompt(prompt), _unquoted(body)


def last_samples(run: RunFolder, *, whole: bool = False) -> list[tuple[int, str, str]]:
    """Return (step, prompt, text) of a run's last samples. whole: the prompt was written with the text."""
    return [
        (step, prompt, text.removeprefix(prompt) if whole else text)
        for step, part in run.samples()[-1:]
        for prompt, text in samples_in(part)
    ]


def last_prompts(run: RunFolder) -> Iterator[str]:
    """Yield the prompts of a run's last samples."""
    last = run.samples()[-1][1] if run.samples() else ""
    for match in re.finditer(r"(?ms)^Prompt: `(.*?)`$\n\n> ", last):
        yield read_prompt(match[1])


def _one_line(prompt: str) -> str:
    """Return a prompt as inline code; as JSON if it has backticks or line breaks, which could start headings."""
    if not prompt:
        return NO_PROMPT
    is_plain = prompt.isprintable() and not re.search(r'`|^"|^ | $', prompt) and prompt != NO_PROMPT
    return prompt if is_plain else json.dumps(prompt, ensure_ascii=not prompt.isprintable()).replace("`", "\\u0060")


def read_prompt(text: str) -> str:
    """Return a prompt from its inline code in samples.md."""
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text  # written before prompts were stored as JSON
    return "" if text == NO_PROMPT else text


def _unquoted(text: str) -> str:
    return "\n".join(line.removeprefix("> ").removeprefix(">") for line in text.strip().split("\n"))


def _quoted(text: str) -> str:
    """Return the lines of a quotation; a single carriage return also starts a line."""
    return re.sub(r"\r\n?", "\n", text).replace("\n", "\n> ")
