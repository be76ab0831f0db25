"""The questions that the documents ask the demo's model, and their wording."""

import re
import shlex
from pathlib import Path

from llm_lab.data.arithmetic_world import PEOPLE, THINGS

ROOT = Path(__file__).resolve().parent.parent.parent
EVENT = re.compile(r"(finds|gets|buys|loses|gives|sells) \d+( more)?( (from|to) \w+)?")


def shown_questions() -> set[str]:
    """Return the prompts in the commands of README, docs and Makefile that name checkpoints/demo."""
    files = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if "checkpoints/demo" in line and '--prompt "' in line]
    return {words[words.index("--prompt") + 1] for words in found}


def shape_of(question: str) -> str:
    """Return the wording of a question, without its names, things, numbers and events."""
    told = EVENT.sub("EVENT", question)
    people = "|".join(name for name, _ in PEOPLE)
    for words, kind in (
        (people, "NAME"),
        ("|".join(THINGS), "THINGS"),
        (r"\d+", "NUMBER"),
        ("he|she", "he"),
        ("He|She", "He"),
    ):
        told = re.sub(rf"\b({words})\b", kind, told)
    return told
