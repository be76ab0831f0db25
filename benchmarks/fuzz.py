"""Pass damaged or odd input to every entry point, and count internal errors.

python -m benchmarks fuzz [--trials N] [--seed S] [--only recipes,data,models,commands,chat]

Each case changes valid input in one to three places: a value of another type, a missing or unknown key, bytes that are
cut, flipped or inserted. It enters like a user's input: a recipe through `llm-lab check`, data through the X-ray and
the readers, a model or adapter folder through `llm-lab show` and `chat`, arguments through the command line, lines
through the chat. Allowed is success, or an error for the user (exit codes 0, 2 and 3). Anything else is a finding:
another exit code, another exception, a traceback in the output, more than `PATIENCE_SECONDS`, more than `MEMORY_BYTES`,
or an error text longer than `LONGEST_MESSAGE`. Cases run in forked processes, so that none can end the campaign.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .kills import SIZES, import_modules, scenarios, write_inputs

PATIENCE_SECONDS = 60
MEMORY_BYTES = 6 * 2**30  # more than the process has at its start
LONGEST_MESSAGE = 20_000
BATCH = 40  # cases of one forked process
MODULES = ("cli", "stages.eval", "chat.session", "hf.chat_templates", "hf.lora_layers", "terminal.chat_screen")
SHARES = {"recipes": 0.5, "data": 0.2, "models": 0.2, "commands": 0.05, "chat": 0.05}  # shares of all cases
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**70), 10**400, 0.0, -0.5, 1e308, float("inf"), float("nan"),
    "", " ", "0", "1e-3", "true", "null", "☃", "é" * 300, "a\x00b", "\x1b[31mred", "../../x", "~", "/", ".", "\ud800",
    "[red]x[/]", "{% for i in range(9) %}", "(a+)+$", "x" * 5000, "2024-01-01", "builtin:", "builtin:sums", "stage:",
    [], [None], [[]], ["a", 1], [1, 2, 3], {}, {"a": None}, {"": {}}, {"checkpoint": None}, [{}], {"path": ["x"]},
)  # fmt: skip
SHORT = "eval.speed_tokens=4"
WORDS = ("model", "path", "data", "train", "stage", "messages", "prompt", "chosen", "text", "name", "x", "")


@dataclass
class Findings:
    """How many cases ran, by kind and exit code, and what should not have happened."""

    cases: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    internal: dict[str, list[str]] = field(default_factory=dict)  # {where it was raised: cases}

    @property
    def count(self) -> int:
        """The number of findings."""
        return sum(map(len, self.internal.values()))


# --- changed input


def change_value(value: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON-like value with one place changed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return draw.choice(ODD)
    holder, key = draw.choice(places)
    how = draw.randrange(8)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        new = draw.choice((f"{key}x", str(key).upper(), *WORDS, 1))
        holder[new] = holder.pop(key)
    elif how == 2 and isinstance(holder, dict):
        holder[draw.choice(WORDS)] = draw.choice(ODD)
    elif how == 3:
        other, at = draw.choice(places)
        holder[key] = copy.deepcopy(other[at])
    elif how == 4:
        holder[key] = [holder[key]]
    elif how == 5 and isinstance(holder[key], str) and holder[key]:
        holder[key] = change_bytes(holder[key].encode(errors="surrogatepass"), draw).decode(errors="replace")
    elif how == 6 and isinstance(holder[key], int | float):
        factor = draw.choice((-1, 0, 1e-9, 1e9, 2, 0.5))
        with contextlib.suppress(OverflowError):  # an integer that no float can hold is not changed
            holder[key] = holder[key] * factor
    else:
        holder[key] = draw.choice(ODD)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with one place cut, flipped, repeated or replaced."""
    at = draw.randrange(len(content) + 1)
    stop = min(len(content), at + draw.choice((1, 1, 2, 8, 100)))
    odd = draw.choice(
        (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"{", b"}", b"[", b"\n", b"\t", b": ", b"- ", b"&a *a", b"\\u12",
         b"NaN", b"1e999", b"\x1b]0;x\x07", b"!!python/object:os.system ", "\u2028".encode(), b"'" * 3)
    )  # fmt: skip
    how = draw.randrange(6)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + content[stop:]
    if how == 2:
        return content[:at] + content[at:stop] * draw.choice((2, 3, 50)) + content[stop:]
    if how == 3 and stop > at:
        flipped = bytes(byte ^ (1 << draw.randrange(8)) for byte in content[at:stop])
        return content[:at] + flipped + content[stop:]
    if how == 4:
        return content[:at] + bytes(draw.randrange(256) for _ in range(stop - at)) + content[stop:]
    return content[:at] + odd + content[at:]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=_needs_escapes(value))


def _needs_escapes(value: Any) -> bool:
    """Return whether a value can only be written with escapes, because it contains a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


# --- the cases: each returns an action and its description


@dataclass(frozen=True)
class Place:
    """The valid input, which is read once."""

    inputs: Path
    recipes: dict[str, dict[str, Any]]

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        names = ("questions", "pairs")
        lines = {name: (self.inputs / f"{name}.jsonl").read_text().splitlines()[:12] for name in names}
        rows = {name: [json.loads(line) for line in some] for name, some in lines.items()}
        talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
        rows["talks"] = [{"messages": talk, "tools": [], "id": number} for number in range(8)]
        rows["texts"] = [{"text": f"a red stone {number}.", "source": None} for number in range(8)]
        return rows


Case = Callable[[], Any]


class TooLong(Exception):
    """A case took too long. Not a TimeoutError, because that is an OSError, which means that a file can't be read."""


def recipe_case(place: Place, draw: random.Random) -> tuple[Case, str]:
    """A recipe with changed values or bytes, through `check` or a dry run."""
    value: Any = place.recipes[draw.choice(list(place.recipes))]
    file = Path(draw.choice(("r.yaml", "r.yaml", "r.json")))
    if draw.random() < 0.75:
        for _ in range(draw.choice((1, 1, 2, 3))):
            value = change_value(value, draw)
        content = _json(value).encode(errors="surrogatepass")
    else:
        content = change_bytes(_json(value).encode(errors="surrogatepass"), draw)
    file.write_bytes(content)
    command = draw.choice((["check", str(file)], ["check", str(file)], ["run", str(file), "--dry-run"]))
    if draw.random() < 0.2:
        command.append(f"{draw.choice(('train.max_steps', 'model', 'data.0.path', 'x.y'))}={draw.choice(ODD)}")
    return lambda: _command(command), content[:1500].decode(errors="replace")


def data_case(place: Place, draw: random.Random) -> tuple[Case, str]:
    """A changed data file, through the readers of examples and texts, or the X-ray."""
    rows: list[Any] = place.rows[draw.choice(list(place.rows))]
    for _ in range(draw.choice((1, 1, 2, 5))):
        rows = change_value(rows, draw)
        rows = rows if isinstance(rows, list) else [rows]
    endings = ("jsonl", "jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz", "arrow", "zip", "ndjson")
    ending = draw.choice(endings)
    content = _encode(rows, ending, draw)
    if draw.random() < 0.5:
        content = change_bytes(content, draw)
    Path(f"d.{ending}").write_bytes(content)
    kind = draw.choice(("conversation", "preference", "prompt", "text", "xray"))
    shown = f"{kind} d.{ending}: {content[:700]!r}"
    if kind == "xray":
        name = draw.choice(("sft", "dpo", "pretrain"))
        recipe = place.recipes[name] | {"data": [{"path": f"d.{ending}"}]}
        Path("x.json").write_text(json.dumps(recipe))
        return lambda: _command(["xray", "x.json"]), shown
    return lambda: _read(kind, f"d.{ending}"), shown


def _encode(rows: Sequence[Any], ending: str, draw: random.Random) -> bytes:
    import csv
    import gzip
    import zipfile

    text = "".join(_json(row) + "\n" for row in rows)
    lines = text.encode(errors="surrogatepass")
    if ending in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if ending == "tsv" else draw.choice((",", ",", ";", "|")))
        dicts = [row for row in rows if isinstance(row, dict)]
        names = list(dict.fromkeys(name for row in dicts for name in row))
        writer.writerow(names)
        writer.writerows([row.get(name) for name in names] for row in dicts)
        return out.getvalue().encode(errors="surrogatepass")
    if ending in ("parquet", "arrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        out_bytes = io.BytesIO()
        try:
            table = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)] or [{"text": "a"}])
            if ending == "parquet":
                pq.write_table(table, out_bytes)
            else:
                with pa.ipc.new_file(out_bytes, table.schema) as writer:
                    writer.write_table(table)
        except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeEncodeError):
            return lines
        return out_bytes.getvalue()
    if ending == "jsonl.gz":
        return gzip.compress(lines)
    if ending == "zip":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a.jsonl", lines)
        return packed.getvalue()
    return _json(rows).encode(errors="surrogatepass") if ending == "json" else lines


def _read(kind: str, path: str) -> int:
    from llm_lab.data.examples import open_examples
    from llm_lab.data.sources import open_source

    if kind == "text":
        for text in open_source(path, key="data.0").documents():
            text.encode()
        return 0
    for example in open_examples(path, key="data.0", kind=kind).examples:
        assert example.prompt is not None
    return 0


def model_case(place: Place, draw: random.Random) -> tuple[Case, str]:
    """A model or adapter folder with a changed, cut or missing file, through `show`, `chat` or a recipe."""
    shutil.rmtree("m", ignore_errors=True)
    kind = draw.choice(("base", "adapter"))
    shutil.copytree(place.inputs / kind, "m")
    files = sorted(file for file in Path("m").rglob("*") if file.is_file())
    changes = []
    for _ in range(draw.choice((1, 1, 2))):
        file = draw.choice(files)
        if not file.exists():
            continue
        how = draw.random()
        if how < 0.1:
            file.unlink()
        elif file.suffix == ".json" and how < 0.75:
            with contextlib.suppress(ValueError):
                value = change_value(json.loads(file.read_text()), draw)
                file.write_bytes(_json(value).encode(errors="surrogatepass"))
        else:
            file.write_bytes(change_bytes(file.read_bytes(), draw))
        changes.append(f"{file}: {file.read_bytes()[:900]!r}" if file.exists() else f"{file} removed")
    command = draw.choice(
        (
            ["show", "m"],
            ["chat", "m", "--device", "cpu", "--prompt", "a?", "--max-new-tokens", "2"],
            ["check", "r.json"],
            ["eval", "m", "--data", str(place.inputs / "text.txt"), "device=cpu", "eval.max_tokens=64", SHORT],
        )
    )
    recipe = place.recipes[draw.choice(("sft", "lora", "dpo"))] | {"model": {"checkpoint": "m"}}
    Path("r.json").write_text(json.dumps(recipe))
    return lambda: _command(command), f"{' '.join(command)} | {kind} | {' | '.join(changes)}"


NUMBERS = ("0", "1", "2", "-1", "3.5", "1e9", "nan", "inf", "99999999999999999999", "", "x", "é")
VALID = (
    "check r.json",
    "xray r.json --examples 1",
    "list data",
    "show m",
    "chat m --device cpu --prompt a? --max-new-tokens 2 --temperature 0",
    "eval m --data text.txt device=cpu eval.max_tokens=64 eval.speed_tokens=0",
    "compare m other --device cpu --prompt a? --max-new-tokens 2 --out c.json",
    "export m --dry-run --to gguf",
    "merge adapter --tolerance 0.1 --out merged",
    "copy r.json new.yaml",
    "run r.json train.max_steps=5 --dry-run",
)


def command_case(place: Place, draw: random.Random) -> tuple[Case, str]:
    """Odd arguments of a real command."""
    shutil.rmtree("m", ignore_errors=True)
    os.symlink(place.inputs / "base", "m") if draw.random() < 0.5 else shutil.copytree(place.inputs / "base", "m")
    for name in ("base", "adapter", "text.txt"):
        os.symlink(place.inputs / name, {"base": "other"}.get(name, name))
    Path("r.json").write_text(json.dumps(place.recipes["pretrain"]))
    verbs = ("run", "check", "xray", "list", "copy", "show", "chat", "eval", "compare", "export", "replay", "merge")
    options = (
        "--dry-run", "--resume", "--overwrite", "--json", "--steps", "--adapter-off", "--prompt", "--data", "--out",
        "--to", "--limit", "--temperature", "--seed", "--max-new-tokens", "--name", "--device", "--examples",
    )  # fmt: skip
    odd = [str(value) for value in ODD if "\x00" not in str(value)]
    values = ("m", "r.json", "gguf", "cpu", "0", "-1", "nan", "nosuch/model", "checkpoints", "recipes", *odd)
    how = draw.random()
    if how < 0.4:  # a valid command with another number
        words = re.sub(r"(?<=[ =])[0-9.]+", lambda _: draw.choice(NUMBERS), draw.choice(VALID)).split()
    elif how < 0.7:  # with one word added or replaced
        words = draw.choice(VALID).split()
        at = draw.randrange(1, len(words) + 1)
        words[at : at + draw.randrange(2)] = [draw.choice((*values, *options))]
    else:
        words = [draw.choice(verbs), *(draw.choice((*values, *options)) for _ in range(draw.randrange(5)))]
    if words[0] in ("run", "replay") and "--dry-run" not in words:
        words.append("--dry-run")
    return lambda: _command(words), repr(words)


def chat_case(place: Place, draw: random.Random) -> tuple[Case, str]:
    """Lines typed into a chat."""
    names = ("help", "settings", "set", "reset", "system", "save", "load", "model", "compare", "time", "retry", "x", "")
    odd = [str(value).replace("\n", " ") for value in ODD]
    settings = ("temperature 0", "temperature x", "top_k 1", "max_new_tokens 2", "seed none")
    values = ("m", "a.json", "/tmp", *settings, *odd)
    lines = ["/set max_new_tokens 2"]
    for _ in range(draw.randrange(1, 6)):
        if draw.random() < 0.65:
            lines.append(f"/{draw.choice(names)} {draw.choice(values) if draw.random() < 0.8 else ''}".strip())
        else:
            lines.append(draw.choice(odd))
    return lambda: _chat(place.inputs / "base", lines), repr(lines)


def _chat(folder: Path, lines: Sequence[str]) -> int:
    from llm_lab.chat.session import ChatSession
    from llm_lab.evaluation.side_by_side import SideBySide
    from llm_lab.hf.load import load_model
    from llm_lab.hf.tokenizers import load_tokenizer
    from llm_lab.terminal.chat_screen import run_chat

    def load(name: str) -> ChatSession:
        from llm_lab.runs.folder import find_checkpoint

        found = find_checkpoint(name)
        return ChatSession(load_model(found), load_tokenizer(found), name=name)

    sys.stdin = io.StringIO("\n".join(lines) + "\n")
    session = ChatSession(load_model(folder), load_tokenizer(folder), name=str(folder))
    run_chat(session, load=load, side_by_side=lambda: SideBySide(load), interactive=False)
    return 0


KINDS: dict[str, Callable[[Place, random.Random], tuple[Case, str]]] = {
    "recipes": recipe_case,
    "data": data_case,
    "models": model_case,
    "commands": command_case,
    "chat": chat_case,
}


def write_models(inputs: Path) -> None:
    """Write a base and an adapter with random weights, as pretraining and fine-tuning would save them."""
    import torch

    from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
    from llm_lab.hf.load import load_model
    from llm_lab.hf.lora_layers import attach_lora
    from llm_lab.hf.save import save_model, set_special_tokens
    from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
    from llm_lab.model.configuration_lab import LabConfig
    from llm_lab.model.modeling_lab import LabForCausalLM
    from llm_lab.recipe.post_training import Lora

    torch.manual_seed(0)
    tokenizer = make_byte_tokenizer()
    model = LabForCausalLM(LabConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES))
    set_special_tokens(model, tokenizer)
    save_model(model, inputs / "base", tokenizer)
    base, tokenizer = load_model(inputs / "base"), load_tokenizer(inputs / "base")
    chosen = apply_chat_template_choice(tokenizer, "chatml")
    new = resize_for(base, tokenizer, chosen)
    adapter = attach_lora(base, Lora(r=2, alpha=4, dropout=0.0), seed=0, new_token_ids=new)
    save_model(adapter, inputs / "adapter", tokenizer)


# --- running the cases


def _command(words: Sequence[str]) -> int:
    """Run a command; let internal errors through, so that their place is known."""
    from llm_lab.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        sys.stdin = io.StringIO("")
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 2
    text = out.getvalue() + err.getvalue()
    if code == 1:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(["--debug", *words])
        raise RuntimeError(f"exit code 1: {text[-500:]}")
    if "Traceback (most recent" in text:
        raise RuntimeError(f"a traceback in the output: {text[-500:]}")
    if len(err.getvalue()) > LONGEST_MESSAGE:
        raise RuntimeError(f"an error text of {len(err.getvalue()):,} characters: {err.getvalue()[:300]}")
    return code


def run_case(kind: str, number: int, seed: int, place: Place) -> tuple[str, str, str]:
    """Run one case in the working folder; return (exit code, where an internal error was raised or "", the input)."""
    from llm_lab.errors import LabError

    def too_long(*_: Any) -> None:
        raise TooLong(f"more than {PATIENCE_SECONDS} s")

    draw = random.Random(f"{seed}/{kind}/{number}")
    case, shown = KINDS[kind](place, draw)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return str(case()), "", shown
    except LabError as error:
        long = len(str(error)) > LONGEST_MESSAGE
        return str(error.exit_code), f"an error text of {len(str(error)):,} characters" if long else "", shown
    except (Exception, RecursionError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/llm_lab/" in frame.filename] or frames
        last = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        first = next(iter(str(error).splitlines()), "")
        return "1", f"{last} {type(error).__name__}: {first[:200]}", shown
    finally:
        signal.alarm(0)


def campaign(trials: int, seed: int, only: set[str] | None = None) -> Findings:
    """Run cases of every kind; return the findings."""
    import_modules(MODULES)
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary).resolve()
        write_inputs(folder / "inputs", with_models=False)
        if _in_a_fork(partial(write_models, folder / "inputs")) != 0:
            raise RuntimeError("the models could not be made")
        place = Place(folder / "inputs", scenarios(folder / "inputs"))
        wanted = {kind: share for kind, share in SHARES.items() if only is None or kind in only}
        for kind, share in wanted.items():
            count = max(1, round(trials * share / sum(wanted.values())))
            for start in range(0, count, BATCH):
                _run_batch(kind, range(start, min(count, start + BATCH)), seed, place, folder, findings)
                if sys.stderr.isatty() or start % 1000 == 0:
                    print(f"{kind}: {start} of {count}, {findings.count} findings", file=sys.stderr, flush=True)
    return findings


def _run_batch(kind: str, numbers: range, seed: int, place: Place, folder: Path, findings: Findings) -> None:
    """Run some cases in a forked process; a case that kills it is a finding, and the rest run in the next process."""
    results, at = folder / "results.jsonl", numbers.start
    while at < numbers.stop:
        results.write_text("")
        _in_a_fork(partial(_work, kind, range(at, numbers.stop), seed, place, folder, results))
        lines = [json.loads(line) for line in results.read_text().splitlines()]
        for number, code, raised, shown in lines:
            if raised:  # a campaign may be stopped before it prints its findings
                print(f"{kind} {number}: {raised}", file=sys.stderr, flush=True)
            count_case(findings, kind, number, code, raised, shown)
        at += len(lines)
        if at < numbers.stop:
            count_case(findings, kind, at, "died", "the process died, or took too much memory", f"case {at}")
            at += 1


def _in_a_fork(work: Callable[[], None]) -> int:
    """Do something in a forked process with one thread, because this process's other threads do not exist there.

    Returns its exit code, or minus the signal that ended it.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        import torch

        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _work(kind: str, numbers: range, seed: int, place: Place, folder: Path, results: Path) -> None:
    os.environ["LLM_LAB_CACHE"] = str(folder / "cache")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    for number in numbers:
        home = folder / "case"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        os.chdir(home)
        found = run_case(kind, number, seed, place)
        with results.open("a") as file:
            file.write(json.dumps([number, *found]) + "\n")


def count_case(findings: Findings, kind: str, number: int, code: str, raised: str, shown: str) -> None:
    """Add the result of a case; raised: where an internal error came from, or ""."""
    findings.cases[kind] += 1
    findings.codes[f"{kind} {code}"] += 1
    if raised:
        findings.internal.setdefault(raised, []).append(f"{kind} {number}: {shown}")


def bench(full: bool, *, trials: int | None = None, seed: int = 0, only: str | None = None) -> None:
    """Run a campaign and print the findings. full: 20,000 cases."""
    findings = campaign(trials or (20_000 if full else 400), seed, set(only.split(",")) if only else None)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in findings.cases.items())
    print(f"{sum(findings.cases.values()):,} cases (seed {seed}): {kinds}")
    print(", ".join(f"{code}: {count:,}" for code, count in sorted(findings.codes.items())))
    print(f"{findings.count} findings at {len(findings.internal)} places")
    for raised, cases in sorted(findings.internal.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(cases)} × {raised}\n    {cases[0][:1500]}")
