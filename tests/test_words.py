"""Plain English: words that the text and the names of LLM Lab (strings, comments, docs, functions) do not use."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Not current technical English, or words of ours for things that have a usual name. Each pattern: what to say instead.
WORDS = {
    r"told|tells?|telling": "says, shows, reports",
    r"stands?|stood": "is, has, appears",
    r"beside": "next to, with, and",
    r"besides": "also, in addition",
    r"mend|mends|mended|mending": "fix",
    r"foretell\w*|foretold": "predict",
    r"anew": "again",
    r"goes on|go on|going on|went on|gone on": "continues, resumes",
    r"judges?|judged|judging": "reward model, scores",
    r"rehears\w+": "CPU mode",
    r"so many": "this many, a number of",
    r"shall": "will, should",
    r"likeliest": "most likely, top",
    r"learnt": "learned, trained",
    r"tak(?:e|es|ing|en) away": "export",
    r"heeds?|heeded": "use, follow",
    r"kindred": "similar, same",
    r"com(?:e|es|ing) to(?! the| a| an| this| that| us| it| you)": "result is, totals",
    r"came to(?! the| a| an| this| that)": "resulted in, totaled",
    r"reckon\w*": "compute, estimate",
    r"nought|naught|hither|thither|whither|whence|hence|thence": "",
    r"ere|nigh|amiss|unto": "",
    r"therein|thereof|wherein|whereof": "",
    r"of late": "recent",
    r"set out|sets out": "start",
    r"knows? no|knows? nothing|knows? of no": "does not support",
    r"takes? no|wants? no|speaks? no": "does not accept",
    r"(?<!there )(?:is|are|be|was|were) no(?= [a-z]+(?:$|[.,:;)\"']))": "is not a",
    r"hangs? on": "depends on",
    r"beholds?|befalls?|bestow\w*|betoken\w*|begets?|beget": "",
    r"riddles?": "unclear",
    r"the dial|a dial": "size preset",
    r"unasked": "without asking",
    r"of (?:ours|theirs|yours|his|hers|others)": "our, other",
    r"what becomes of|what became of|what came of|what comes of": "result",
    r"has done for it|have done for it": "callbacks",
    r"specimens?": "example, sample",
    r"in vain": "without effect",
    r"thrice|twain|twofold|threefold": "",
    r"as yet": "yet",
    r"lest": "so that ... not",
    r"albeit|notwithstanding|whilst|amongst|(?<!once )upon(?! a time)|hereby|herewith": "although, while, among, on",
    r"in sight": "shown",
    r"whose word": "",
    # One name for each quantity: that of the glossary.
    r"val loss|eval loss|held-out loss": "validation loss",
    r"bits/byte|bits a byte|bpb": "bits per byte",
}
PATTERN = re.compile(r"\b(?:" + "|".join(f"(?:{words})" for words in WORDS) + r")\b(?!-)", re.IGNORECASE)
# The built-in training texts are data: a changed word would be other data.
DATA = {"stories.py", "arithmetic_world.py"}
FILE_METHODS = {"tell", "whence"}  # names in Python's own interface of files


def is_ours(file: Path) -> bool:
    return "vendor" not in file.parts


PLACES = [
    *sorted((ROOT / "llm_lab").glob("**/*.py")),
    *sorted((ROOT / "llm_lab").glob("**/*.yaml")),
    *sorted(
        file for kind in ("html", "js", "css") for file in (ROOT / "llm_lab").glob(f"**/*.{kind}") if is_ours(file)
    ),
    *sorted((ROOT / "tests").glob("**/*.py")),
    *sorted((ROOT / "benchmarks").glob("**/*.py")),
    *sorted((ROOT / "docs").glob("*.*")),
    *sorted((ROOT / "docs").glob("images/*.svg")),
    *sorted((ROOT / "configs").glob("*.yaml")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
FILES = [file for file in PLACES if file.name not in DATA | {"test_words.py"} and file.suffix != ".json"]


def prose_of(file: Path) -> list[tuple[int, str]]:
    """Return (line number, text) of what people read: strings, comments and names in Python; elsewhere all."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    found = names_in(text)
    wanted = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in wanted:
            found += [(token.start[0] + at, line) for at, line in enumerate(token.string.splitlines())]
    return found


def names_in(text: str) -> list[tuple[int, str]]:
    """Return (line number, words) of the names of functions, tests, fixtures, classes and parameters."""
    named = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            named.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            named.append((node.lineno, node.arg))
    return [(line, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name)) for line, name in named if name not in FILE_METHODS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_text_is_plain_english(file):
    wrong = [
        f"{file.relative_to(ROOT)}:{number}: {match.group(0)!r} in: {line.strip()[:100]}"
        for number, line in prose_of(file)
        for match in PATTERN.finditer(line)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_names_of_functions_classes_and_parameters_are_read():
    text = "class BesideIt:\n    async def judge_all(self, so_many): ...\n"
    assert [PATTERN.search(words)[0] for _, words in names_in(text) if PATTERN.search(words)] == [
        "Beside",
        "judge",
        "so many",
    ]


def test_every_share_is_written_with_a_space_before_its_sign():
    files = [file for file in FILES if file.suffix == ".py" and "llm_lab" in file.relative_to(ROOT).parts]
    assert files
    shares = re.compile(r"(?<!--p:)(?<!width:)\{[^{}]*:\.\d%\}(?! old text)")
    found = [file.relative_to(ROOT) for file in files if shares.search(file.read_text("utf-8"))]
    assert not found, f"llm_lab.estimate.formatting.percent writes shares: {found}"
