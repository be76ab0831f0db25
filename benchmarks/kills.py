"""Kill runs at arbitrary points, resume them until they are done, and compare them with undisturbed runs.

python -m benchmarks kills [--trials N] [--seed S] [--only STAGE,...]     (a trial takes a few seconds)

Each trial runs a toy recipe with `llm-lab run` in its own process, forked so that it need not import torch again. It is
ended up to three times: at a random moment, in the middle of a file operation, while a chosen folder is being written,
or while an evaluation runs. Then it is resumed to its end. The result must be the same as without kills: bit-identical
weights, the rows of metrics.jsonl except for times, samples, results, and the same files, without temporary ones.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLOCK = {"wall_seconds", "tokens_per_second", "memory_bytes", "seconds", "seconds_to_first_token"}
OF_A_RESUME = {"resumed_at", "warnings"}  # additional keys that run.json of a resumed run may have
SIGNALS = [signal.SIGKILL] * 7 + [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
EVALUATING = "evaluating-"  # a file with this name and a number exists while an evaluation runs
WRITING = {"steps/.saving": "a checkpoint", ".model.tmp": "the model", ".tokenizer.tmp": "the tokenizer"}
PLACES = (*WRITING, "steps/checkpoint-2", "model", "recipe.yaml", "run.json")
MAX_KILLS, PATIENCE_SECONDS = 3, 300.0
SAVING = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
MODULES = ("cli", "runner", "runs.card", "optim.factory", "terminal.progress")
WORDS = "the a small red green old tree stone river bird fish sings falls waits runs near under over".split()


@dataclass
class Outcome:
    """The findings of a campaign. kills: by scenario; failures: descriptions, with the trial that repeats each."""

    trials: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)  # what was unfinished after the kill
    failures: list[str] = field(default_factory=list)


# --- recipes


def scenarios(inputs: Path) -> dict[str, dict[str, Any]]:
    """Return a toy recipe for every stage, and a pipeline. inputs: a folder with data, a base and an adapter."""
    tuned: dict[str, Any] = {
        "device": "cpu",
        "model": {"checkpoint": str(inputs / "base")},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "scheduler": {"warmup_steps": 0},
        "train": SAVING | {"max_length": 64},
    }
    talked = tuned | {"samples": {"max_new_tokens": 3}, "data": [{"path": str(inputs / "questions.jsonl")}]}
    pairs = {"data": [{"path": str(inputs / "pairs.jsonl")}]}
    rewarded = talked | {"rewards": [{"name": "length", "length": 8}], "score": None}
    adapter = {"device": "cpu", "model": {"checkpoint": str(inputs / "adapter")}}
    pretrain = pretrain_recipe(inputs)
    evaluation = {"stage": "eval", "data": [{"path": str(inputs / "text.txt")}], "eval": {"max_tokens": 500}}
    sft = {"stage": "sft", "lora": {"r": 2}, **{key: value for key, value in talked.items() if key != "model"}}
    return {
        "pretrain": pretrain,
        "sft": {"stage": "sft", **talked},
        "lora": {"stage": "sft", "lora": {"r": 2}, **talked},
        "reward": {"stage": "reward", **tuned, **pairs},
        "dpo": {"stage": "dpo", **talked, **pairs},
        "grpo": {"stage": "grpo", "grpo": {"num_generations": 2, "max_completion_length": 6}, **rewarded},
        "ppo": {"stage": "ppo", "ppo": {"max_completion_length": 6}, **rewarded},
        "merge": {"stage": "merge", **adapter},
        "export": {"stage": "export", **adapter},
        "pipeline": {"device": "cpu", "stages": [pretrain, sft, {"stage": "merge"}, evaluation]},
    }


def pretrain_recipe(inputs: Path, **changes: Any) -> dict[str, Any]:
    """Return a toy pretraining recipe that trains its own tokenizer."""
    return {
        "stage": "pretrain",
        "device": "cpu",
        "model": SIZES | {"max_position_embeddings": 64},
        "tokenizer": {"bpe": 300},
        "data": [{"path": str(inputs / "text.txt")}],
        "optimizer": {"name": "muon"},
        "scheduler": {"warmup_steps": 0},
        "train": SAVING | {"max_length": 32, "dtype": "float32", "compile": False},
        "samples": {"prompts": ["the", "# a heading\n## Step 2"], "max_new_tokens": 3},
        **changes,
    }


def write_inputs(inputs: Path, *, with_models: bool = True) -> None:
    """Write data, and train a base and an adapter on it."""
    inputs.mkdir()
    pick = random.Random(0)
    text = "".join(" ".join(pick.choices(WORDS, k=pick.randint(4, 9))) + ".\n" for _ in range(200))
    (inputs / "text.txt").write_text(text)
    rows = [{"question": f"{i}: {i % 9}?", "answer": f"It is {i % 7}."} for i in range(40)]
    pairs = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no, {i}"} for i in range(40)]
    for name, lines in (("questions", rows), ("pairs", pairs)):
        (inputs / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = inputs / "made"
    base = pretrain_recipe(inputs, tokenizer="bytes", optimizer={"name": "adamw", "learning_rate": 1e-3})
    for name, recipe in (("base", base), ("adapter", scenarios(inputs)["lora"])) if with_models else ():
        folder = made / name
        if run_to_end(recipe, folder)[0] != 0:
            raise RuntimeError(f"{name} could not be made:\n{(folder / 'output.txt').read_text()}")
        shutil.copytree(run_folder(folder) / "model", inputs / name)


# --- one process, forked


def start(
    recipe: Mapping[str, Any], home: Path, *, resume: bool, kill_at: int | None = None, count: bool = False
) -> int:
    """Start `llm-lab run` in a forked process that works in `home`; returns its id.

    kill_at: the file operation in the run folder before which it kills itself. count: write how many there were.
    """
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{EVALUATING}*"):
        left.unlink()
    (home / "recipe.json").write_text(json.dumps(recipe))
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(home)
        os.setpgid(0, 0)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ["LLM_LAB_CACHE"] = str(home / "cache")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        operations = watch_files(home / "checkpoints", kill_at)
        mark_evaluations(home)
        from llm_lab.cli import main

        code = main(["run", "recipe.json", "name=run", "--debug", *(["--resume"] if resume else [])])
        if count:
            Path("operations").write_text(json.dumps(operations))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def watch_files(folder: Path, kill_at: int | None) -> list[str]:
    """List what each operation below a folder writes, and end this process just before one of them."""
    inside = str(folder)
    seen: list[str] = []
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & writes:
                return
        elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        path = os.path.abspath(str(arguments[0]))
        if inside not in path:
            return
        if len(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(next((what for place, what in WRITING.items() if f"/{place}" in path), ""))

    sys.addaudithook(hook)
    return seen


def mark_evaluations(home: Path) -> None:
    """Keep a file in `home` while an evaluation of this process runs."""
    from llm_lab.stages import eval as eval_stage
    from llm_lab.training.trainer import LabTrainerMixin

    count = itertools.count(1)

    def marked(function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            mark = home / f"{EVALUATING}{next(count)}"
            mark.touch()
            try:
                return function(*args, **kwargs)
            finally:
                mark.unlink()

        return run

    LabTrainerMixin.evaluate_now = marked(LabTrainerMixin.evaluate_now)  # type: ignore[method-assign]
    eval_stage.evaluate = marked(eval_stage.evaluate)


def wait(child: int, *, timeout: float = PATIENCE_SECONDS) -> int:
    """Return the exit code of a process, or minus the signal that ended it."""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"it did not end within {timeout:.0f} s")


def run_to_end(recipe: Mapping[str, Any], home: Path, *, resume: bool = False) -> tuple[int, float]:
    """Run undisturbed; return the exit code and the seconds that it took."""
    begun = time.monotonic()
    code = wait(start(recipe, home, resume=resume, count=True))
    return code, time.monotonic() - begun


# --- kills


@dataclass(frozen=True)
class Whole:
    """The undisturbed run of a scenario. operations: what each of its file operations writes."""

    home: Path
    seconds: float
    operations: list[str]

    def operation(self, draw: random.Random) -> int:
        """Draw the number of an operation, as often among the few that write a tokenizer as among the many others."""
        wanted = draw.choice(sorted(set(self.operations)))
        return draw.choice([number for number, what in enumerate(self.operations) if what == wanted])


def disturb(
    recipe: Mapping[str, Any], home: Path, whole: Whole, draw: random.Random, *, resume: bool
) -> tuple[str, str, str] | None:
    """Start or resume a run and end it somewhere.

    Returns (signal, moment, what was unfinished), or None if it ended before.
    """
    kind = draw.choice(("moment", "operation", "operation", "place", "evaluation"))
    number = draw.choice(SIGNALS) if kind != "operation" else signal.SIGKILL
    at = whole.operation(draw) if kind == "operation" else None
    before = set(_half_done(home))
    child = start(recipe, home, resume=resume, kill_at=at)
    place = kind
    if kind == "moment":
        ended = _wait_until(child, lambda begun: time.monotonic() - begun, draw.uniform(0, whole.seconds))
    elif kind == "place":
        place = draw.choice(PLACES)
        path = _places(home, place, draw)
        ended = _wait_until(child, lambda begun: any(p.exists() for p in path()), True)
        time.sleep(draw.choice((0.0, 0.0, 0.002, 0.01)))
    elif kind == "evaluation":
        mark = home / f"{EVALUATING}{draw.randint(1, 2)}"
        ended = _wait_until(child, lambda begun: mark.exists(), True)
        time.sleep(draw.choice((0.0, 0.002, 0.01, 0.03)))
    else:
        ended = None
    if kind != "operation" and ended is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    code = wait(child) if ended is None else ended
    if code == 0:
        return None
    if code not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, 130):
        raise AssertionError(f"exit code {code} after {signal.Signals(number).name} at {place}")
    half_done = [what for what, inode in _half_done(home) if (what, inode) not in before]
    return signal.Signals(number).name, place, half_done[0] if half_done else "nothing of these"


def _half_done(home: Path) -> list[tuple[str, int]]:
    """Return what an ended process left unfinished, each with the inode of the file or folder."""
    runs = home / "checkpoints" / "run"
    found = [(what, path.stat().st_ino) for place, what in WRITING.items() for path in _matching(runs, place)]
    return found + [("an evaluation", path.stat().st_ino) for path in home.glob(f"{EVALUATING}*")]


def _places(home: Path, place: str, draw: random.Random) -> Any:
    """Return a function that returns the paths of a place, in the run folder or in those of the stages."""
    folder = home / "checkpoints" / "run"
    before = {path for path in _matching(folder, place)}
    return lambda: (path for path in _matching(folder, place) if path not in before)


def _matching(folder: Path, place: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in (folder / place, *folder.glob(f"*/{place}")) if path.exists())


def _wait_until(child: int, measure: Any, enough: Any) -> int | None:
    """Wait until something happens in a process; returns its exit code if it ends before."""
    begun = time.monotonic()
    while not measure(begun) >= enough:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def trial(
    name: str, recipe: Mapping[str, Any], home: Path, whole: Whole, draw: random.Random, outcome: Outcome
) -> None:
    """Run a scenario, end it up to three times, resume it, and compare it with the undisturbed run."""
    resume = False
    for _ in range(draw.randint(1, MAX_KILLS)):
        ended = disturb(recipe, home, whole, draw, resume=resume)
        if ended is None:
            break
        outcome.kills[name] += 1
        outcome.signals[ended[0]] += 1
        outcome.places[ended[1]] += 1
        outcome.inside[ended[2]] += 1
        # Before there is a run folder, there is nothing to resume.
        resume = (home / "checkpoints" / "run").is_dir()
    code, _ = run_to_end(recipe, home, resume=(home / "checkpoints" / "run").is_dir())
    if code != 0:
        raise AssertionError(f"it could not be resumed: exit code {code}")
    require_same(home, whole.home)


def run_folder(home: Path) -> Path:
    """Return the only run folder in a home folder."""
    runs = sorted((home / "checkpoints").iterdir())
    if [run.name for run in runs] != ["run"]:
        raise AssertionError(f"there are the runs {[run.name for run in runs]}")
    return runs[0]


def require_same(mine: Path, other: Path) -> None:
    """Raise AssertionError if two runs differ in more than times."""
    one, two = run_folder(mine), run_folder(other)
    files, expected = _files(one), _files(two)
    if files != expected:
        raise AssertionError(f"missing: {sorted(expected - files)}, left over: {sorted(files - expected)}")
    for name in sorted(files):
        path = Path(name)
        if path.suffix in (".safetensors", ".jinja") or path.name in ("samples.md", "recipe.yaml", "tokenizer.json"):
            _require((one / path).read_bytes() == (two / path).read_bytes(), f"{name} differs")
        elif path.name == "metrics.jsonl":
            _require(_rows(one / path) == _rows(two / path), f"{name} differs: {_rows(one / path)} {_rows(two / path)}")
        elif path.name == "run.json":
            _require_same_facts(json.loads((one / path).read_text()), json.loads((two / path).read_text()), name)
    last = [
        max(run.glob("**/steps/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), default=None)
        for run in (one, two)
    ]
    if last[0] and last[1]:
        for weights in last[1].glob("*.safetensors"):
            _require((last[0] / weights.name).read_bytes() == weights.read_bytes(), f"{weights.name} of the checkpoint")


def _require_same_facts(one: Mapping[str, Any], two: Mapping[str, Any], name: str) -> None:
    keys = one.keys() ^ two.keys()
    _require(keys <= OF_A_RESUME, f"{name}: keys {sorted(keys)}")
    _require(one["status"] == two["status"] == "done", f"{name}: status {one['status']}")
    results = [{k: v for k, v in (facts.get("results") or {}).items() if k not in CLOCK} for facts in (one, two)]
    _require(str(results[0]) == str(results[1]) or "scores" in results[0], f"{name}: results {results}")
    for key in ("data", "max_steps", "parameters", "trained_parameters"):
        _require(one.get(key) == two.get(key), f"{name}: {key}")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _files(run: Path) -> set[str]:
    """Return the files of a run folder; of steps/ only hidden ones, as a stopped run has other checkpoints."""
    names = (str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() or path.name.startswith("."))
    return {name for name in names if "steps/checkpoint-" not in name and not name.endswith(".lock")}


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


# --- the campaign


def campaign(trials: int, seed: int, only: set[str] | None = None, *, keep: Path | None = None) -> Outcome:
    """Run trials of the scenarios in turn; return the findings. keep: where failed trials are copied."""
    import_everything(only)
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        place = Path(temporary).resolve()
        write_inputs(place / "inputs", with_models=only != {"pretrain"})
        recipes = {k: v for k, v in scenarios(place / "inputs").items() if only is None or k in only}
        wholes: dict[str, Whole] = {}
        for name, recipe in recipes.items():
            home = place / f"whole-{name}"
            code, seconds = run_to_end(recipe, home)
            if code != 0:
                raise RuntimeError(f"{name} fails undisturbed:\n{(home / 'output.txt').read_text()}")
            wholes[name] = Whole(home, seconds, json.loads((home / "operations").read_text()))
            count = len(wholes[name].operations)
            print(f"{name}: {seconds:.1f} s, {count} file operations", file=sys.stderr, flush=True)
        for number in range(trials):
            draw = random.Random(f"{seed}/{number}")
            name = list(recipes)[number % len(recipes)]
            home = place / f"trial-{number}"
            try:
                trial(name, recipes[name], home, wholes[name], draw, outcome)
            except (AssertionError, TimeoutError, OSError) as error:
                outcome.failures.append(f"trial {number} ({name}): {error}")
                print(outcome.failures[-1], file=sys.stderr, flush=True)
                if keep is not None:
                    shutil.copytree(home, keep / home.name, dirs_exist_ok=True)
            outcome.trials += 1
            shutil.rmtree(home, ignore_errors=True)
            if outcome.trials % 20 == 0:  # because a campaign may be stopped early
                print(_describe(outcome), file=sys.stderr, flush=True)
    return outcome


def _describe(outcome: Outcome) -> str:
    counts = {"run": outcome.kills, "signal": outcome.signals, "moment": outcome.places, "half done": outcome.inside}
    lines = [f"{sum(outcome.kills.values())} kills in {outcome.trials} trials, {len(outcome.failures)} failures"]
    for title, found in counts.items():
        lines.append(f"{title}: {', '.join(f'{name} {count}' for name, count in found.most_common())}")
    return "\n".join(lines)


STAGES = {
    "lora": ("sft",),
    "merge": ("sft", "merge"),
    "export": ("sft", "export"),
    "pipeline": ("sft", "merge", "eval"),
    **{name: (name,) for name in ("pretrain", "sft", "reward", "dpo", "grpo", "ppo")},
}


def import_everything(only: set[str] | None = None) -> None:
    """Import what runs import, so that the forked processes need not. No torch operations: threads don't survive."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stages = {stage for name in only or STAGES for stage in STAGES[name]} | {"pretrain"}
    import_modules([*(f"stages.{stage}" for stage in sorted(stages)), *MODULES])


def import_modules(names: Sequence[str]) -> None:
    """Import modules of LLM Lab and the code of a native model, with one thread and without looking for the Hub."""
    import importlib

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in names:
        importlib.import_module(f"llm_lab.{name}")
    importlib.import_module("transformers.models.llama.modeling_llama")


def bench(full: bool, *, trials: int | None = None, seed: int = 0, only: str | None = None) -> None:
    """Run a campaign and print its figures. full: long enough for at least 400 kills."""
    wanted = set(only.split(",")) if only else None
    keep = Path(os.environ["KEEP_FAILED"]) if "KEEP_FAILED" in os.environ else None
    outcome = campaign(trials or (260 if full else 10), seed, wanted, keep=keep)
    print(f"seed {seed}: {_describe(outcome)}")
    for failure in outcome.failures:
        print(failure)
