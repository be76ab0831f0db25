"""Verify an export: load it in a process without LLM Lab, and compare it with the model it was made from."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llm_lab.errors import LabError
from llm_lab.estimate.compatibility import LLAMA_CPP, TRANSFORMERS, Loads
from llm_lab.hf.load import context_of
from llm_lab.runs.describe import VERDICTS, installed, name_program

PROMPTS = ("Once upon a time", "Question: 12 + 30 =", "The ", "def f(x):\n    return", "\n")
ROW_TOKENS, NEW_TOKENS = 64, 24
# Where tokenizers often differ: digits, white space, apostrophes, scripts, accents, symbols, long words.
TEXTS = (
    "Hello, world! The quick brown fox jumps over the lazy dog.",
    "12345 67 8.9e-10 2024-01-31 $5.00 100% 3½ ² Ⅳ",
    "  leading   spaces\n\n\n\ttabs\t\t x \r\n\r\n the end  ",
    "I'll don't WE'RE it'S 'tis '' o'clock's",
    "na\u00efve caf\u00e9 \u00dcn\u00efc\u00f6d\u00e9 \u00df\u1e9e fi \u00aa\u00ba",
    "日本語のテキスト、中文字符。 한국어 문장 ไทย ภาษา",
    "Привет, мир! مرحبا بالعالم ١٢٣ हिन्दी",
    "😀😃👨\u200d👩\u200d👧 emoji \u00a0nbsp\u2003wide\u3000",
    "x" * 300 + " " + "supercalifragilistic" * 6,
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # see https://example.org/a?b=c&d=%20\n",
    "\n" * 9 + "a" + " " * 17 + "b...???!!!---___",
    "",
)
CHAT = ({"role": "user", "content": "What is 2 + 3?"},)

VERIFIED, FAILED, NOT_TRIED = "proven", "failed", "not tried"  # as in run.json
# The largest relative difference of logits that rounding explains. Transformers dequantizes to float32, so only the
# rounding of the weights shows; llama.cpp also rounds activations. Its KV cache is f32 here: the default f16 alone
# differs by more than f16 weights do. q8_0 is lossy, most of all in narrow models, so for it the share of equal top
# tokens is the stricter check.
TOLERANCES = {
    TRANSFORMERS: {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.2},
    LLAMA_CPP: {"f32": 1e-3, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.4},
}
# llama.cpp computes GPT-2's GELU in its tanh form, from a table in f16.
GPT2_TOLERANCE = 1e-2
# In a mixture of experts, any rounding sends a few tokens to other experts. A wrong weight changes most positions.
EXPERTS_POSITIONS = 0.99
MIN_AGREEMENT = {"f32": 0.99, "f16": 0.99, "bf16": 0.95, "q8_0": 0.9}  # share of equal top tokens
PACKAGES = {TRANSFORMERS: "transformers", LLAMA_CPP: "llama-cpp-python"}
_SOURCE = Path(__file__).with_name("fresh_process.py")


@dataclass(frozen=True)
class Probe:
    """What two models are compared on. rows: ids whose logits are compared; prompts: ids continued greedily."""

    rows: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    chat: tuple[dict[str, str], ...]
    new_tokens: int


@dataclass(frozen=True)
class Answers:
    """A model's results on a probe. logits: float32, (positions of all rows, vocabulary).

    has_experts: whether it is a mixture of experts.
    """

    logits: Any
    written: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]  # the texts after encoding and decoding
    chat: str | None
    has_experts: bool = False


@dataclass(frozen=True)
class Check:
    """How one program's results compare with the original model's.

    version: the program's; "" if it is not installed. reason: why it failed, or was not tried. logit_difference: the
    largest absolute one. relative_logit_difference: the largest one divided by the largest logit, in the
    compared_positions (the share that differs least). greedy_agreement: the share of `positions` with the same top
    token; continuation_agreement: the share of greedily generated tokens before the first that differs. texts_alike:
    how many texts have the same tokens.
    """

    program: str
    verdict: str
    reason: str = ""
    loaded_as: str = ""
    logit_difference: float | None = None
    relative_logit_difference: float | None = None
    compared_positions: float = 1.0
    tolerance: float | None = None
    greedy_agreement: float | None = None
    positions: int = 0
    continuation_agreement: float | None = None
    texts_alike: int = 0
    texts: int = 0
    version: str = ""

    def describe(self) -> str:
        """Return the check in one line."""
        verdict = f"{name_program(asdict(self))}: {VERDICTS[self.verdict]}"
        if self.logit_difference is None or self.greedy_agreement is None or self.continuation_agreement is None:
            return f"{verdict}: {self.reason}"
        most = f" in {100 * self.compared_positions:.0f} % of positions" if self.compared_positions < 1 else ""
        numbers = (
            f"largest logit difference {self.logit_difference:.2g} (relative{most}: "
            f"{self.relative_logit_difference:.2g}, allowed: {self.tolerance:.2g}), "
            f"{100 * self.greedy_agreement:.4g} % of {self.positions:,} top tokens equal, "
            f"{100 * self.continuation_agreement:.4g} % of generated tokens equal, "
            f"{self.texts_alike} of {self.texts} texts tokenized equally"
        )
        why = f": {self.reason}" if self.reason else ""
        return f"{verdict}{why} (as {self.loaded_as}; {numbers})"


@dataclass(frozen=True)
class Verification:
    """The checks of all programs: verified if at least one verifies it and none fails."""

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        verdicts = {check.verdict for check in self.checks}
        return FAILED if FAILED in verdicts else VERIFIED if VERIFIED in verdicts else NOT_TRIED

    def as_dict(self) -> dict[str, Any]:
        """Return the verification for run.json."""
        return {"verdict": self.verdict, "checks": [asdict(check) for check in self.checks]}

    def describe(self) -> str:
        """Return one line per check."""
        return "\n".join(check.describe() for check in self.checks)


def make_probe(model: Any, tokenizer: Any, *, seed: int = 0, trimmed: bool = False) -> Probe:
    """Return a probe for a model: sampled continuations of prompts, and random token ids.

    trimmed: strip leading spaces from the texts. Raises LabError if the logits are NaN.
    """
    context = context_of(model) or ROW_TOKENS + NEW_TOKENS
    length = max(2, min(ROW_TOKENS, context - NEW_TOKENS if context > 2 * NEW_TOKENS else context // 2))
    new_tokens = max(1, min(NEW_TOKENS, context - length))
    generator = torch.Generator().manual_seed(seed)
    rows = model.get_input_embeddings().weight.shape[0]
    known = torch.tensor([number for number in sorted(tokenizer.get_vocab().values()) if number < rows])
    starts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    texts, chat = list(TEXTS), chat_text(tokenizer)
    if chat is not None:
        starts.append(tokenizer(chat, add_special_tokens=False)["input_ids"])
        texts.append(chat)
    starts = [ids[: length // 2] or [0] for ids in starts]

    def sample(scores: Any) -> int:
        probabilities = scores[known].softmax(-1)
        if not probabilities.isfinite().all():
            raise LabError("the model's logits are NaN or infinite, so there is nothing to compare")
        return int(known[torch.multinomial(probabilities, 1, generator=generator)])

    sampled = [_generate(model, ids, length, sample) for ids in starts]
    sampled.append(known[torch.randint(len(known), (length,), generator=generator)].tolist())
    return Probe(
        rows=tuple(tuple(row) for row in sampled),
        prompts=tuple(tuple(ids) for ids in starts),
        texts=tuple(text.lstrip(" ") if trimmed else text for text in texts),
        chat=CHAT if chat is not None else (),
        new_tokens=new_tokens,
    )


def _generate(model: Any, ids: Sequence[int], length: int, choose: Callable[[Any], int]) -> list[int]:
    """Return ids continued to `length` tokens. choose: a function from the last logits to the next token."""
    ids = list(ids)
    fresh, cache = ids, None
    with torch.inference_mode():
        while len(ids) < length:
            output = model(input_ids=torch.tensor([fresh]), past_key_values=cache, use_cache=True)
            cache = getattr(output, "past_key_values", None)
            ids.append(choose(output.logits[0, -1].float()))
            fresh = ids if cache is None else ids[-1:]
    return ids


def ask(model: Any, tokenizer: Any, probe: Probe) -> Answers:
    """Return the original model's results on a probe."""
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in probe.rows]
    written = []
    for prompt in probe.prompts:
        ids = _generate(model, prompt, len(prompt) + probe.new_tokens, lambda scores: int(scores.argmax()))
        written.append(tuple(ids[len(prompt) :]))
    texts = tuple(tuple(tokenizer(text)["input_ids"]) for text in probe.texts)
    return Answers(
        logits=torch.cat(logits).numpy(),
        written=tuple(written),
        texts=texts,
        decoded=tuple(tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in texts),
        chat=chat_text(tokenizer) if probe.chat else None,
        has_experts=any(getattr(model.config, key, None) for key in ("num_local_experts", "num_experts")),
    )


def chat_text(tokenizer: Any) -> str | None:
    """Return a question in the chat template; None if there is no template or it fails on the question."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return tokenizer.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
    except Exception:  # a template can raise anything
        return None


def verify_folder(
    folder: Path, probe: Probe, ours: Answers, *, own_code: bool, weights: str, tolerance: float | None = None
) -> Verification:
    """Load a Hugging Face folder with transformers and compare. own_code: use trust_remote_code."""
    job = {"loader": TRANSFORMERS, "folder": str(folder), "file": None, "trust_remote_code": own_code}
    return Verification(tuple(_check([job], probe, ours, weights, tolerance)))


def verify_gguf(
    file: Path, probe: Probe, ours: Answers, loads: Loads, *, weights: str, tolerance: float | None = None
) -> Verification:
    """Load a GGUF file with llama.cpp, if installed, and with transformers, if it supports the model; compare."""
    skipped, programs = [], []
    if importlib.util.find_spec("llama_cpp") is None:
        skipped.append(
            Check(LLAMA_CPP, NOT_TRIED, "llama-cpp-python is not installed: pip install 'llm-lab[llama-cpp]'")
        )
    else:
        programs.append(LLAMA_CPP)
    if TRANSFORMERS in loads.gguf_readers:
        programs.append(TRANSFORMERS)
    else:
        skipped.append(Check(TRANSFORMERS, NOT_TRIED, loads.gguf_reason))
    if loads.gguf == "gpt2" and tolerance is None:
        tolerance = max(GPT2_TOLERANCE, TOLERANCES[LLAMA_CPP][weights])
    jobs = [{"loader": name, "folder": str(file.parent), "file": file.name} for name in programs]
    return Verification((*_check(jobs, probe, ours, weights, tolerance), *skipped))


def _check(
    jobs: Sequence[Mapping[str, Any]], probe: Probe, ours: Answers, weights: str, tolerance: float | None
) -> list[Check]:
    answers = ask_others([(job, probe) for job in jobs])
    checks = []
    for job, theirs in zip(jobs, answers, strict=True):
        loader = job["loader"]
        check = compare_answers(ours, theirs, tolerance or TOLERANCES[loader][weights], MIN_AGREEMENT[weights])
        program = f"{loader}' reader of GGUF" if loader == TRANSFORMERS and job["file"] else loader
        version = next(iter(installed([PACKAGES[loader]]).values()), "")
        checks.append(replace(check, program=program, version=version))
    return checks


def ask_others(
    jobs: Sequence[tuple[Mapping[str, Any], Probe]], *, python: str = sys.executable
) -> list[dict[str, Any]]:
    """Run exported models in one new process where LLM Lab can't be imported; return their answers or "error".

    jobs: for each model, {loader, folder, file (GGUF, or None), trust_remote_code} and its probe. python: the
    interpreter whose packages load them. Raises LabError if the process dies.
    """
    import numpy

    if not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="llm-lab-proof-") as home:
        requests = [
            {**asdict(probe), "trust_remote_code": False, "threads": torch.get_num_threads(), **job}
            | {"folder": os.path.abspath(job["folder"]), "logits": f"{home}/{index}.npy"}
            for index, (job, probe) in enumerate(jobs)
        ]
        questions, answers = Path(home, "jobs.json"), Path(home, "answers.json")
        questions.write_text(json.dumps(requests), encoding="utf-8")
        # A separate module cache, so that no older copy of the folder's code is loaded.
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{home}/modules", "CUDA_VISIBLE_DEVICES": ""}
        command = [python, "-c", _SOURCE.read_text(encoding="utf-8"), str(questions), str(answers)]
        ended = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
            raise LabError(f"the process that loads the export exited with code {ended.returncode}: {last[:300]}")
        found = json.loads(answers.read_text(encoding="utf-8"))
        for answer, request in zip(found, requests, strict=True):
            if "error" not in answer:
                answer["logits"] = numpy.load(request["logits"])
        return found


def compare_answers(ours: Answers, theirs: Mapping[str, Any], tolerance: float, min_agreement: float) -> Check:
    """Compare another program's answers with the original model's."""
    import numpy

    if "error" in theirs:
        return Check("", FAILED, f"it does not load: {theirs['error'][:300]}")
    one, other = ours.logits, theirs["logits"]
    if one.shape != other.shape:
        return Check("", FAILED, f"its logits cover {other.shape[-1]:,} tokens, not {one.shape[-1]:,}")
    differences = numpy.abs(one - other).max(axis=-1)
    compared = EXPERTS_POSITIONS if ours.has_experts else 1.0
    relative = float(numpy.quantile(differences, compared)) / max(float(numpy.abs(one).max()), 1e-12)
    greedy = float((one.argmax(-1) == other.argmax(-1)).mean())
    alike = [list(a) == b for a, b in zip(ours.texts, theirs["texts"], strict=True)]
    why = []
    if not relative <= tolerance:  # also fails for NaN
        why.append("its logits differ")
    if greedy < min_agreement:
        why.append(f"fewer than {100 * min_agreement:.0f} % of its top tokens are equal")
    if not all(alike):
        why.append(f"its tokenizer splits text {alike.index(False) + 1} of the test texts differently")
    if list(ours.decoded) != theirs["decoded"]:
        why.append("its tokenizer decodes the same tokens differently")
    if ours.chat is not None and theirs["chat"] not in (ours.chat, None):
        why.append("its chat template gives a different text")
    untested = "its chat template could not be tested" if ours.chat is not None and theirs["chat"] is None else ""
    return Check(
        program="",
        verdict=FAILED if why else VERIFIED,
        reason="; ".join(why) or untested,
        loaded_as=theirs["loaded_as"],
        logit_difference=float(differences.max()),
        relative_logit_difference=relative,
        compared_positions=compared,
        tolerance=tolerance,
        greedy_agreement=greedy,
        positions=len(one),
        continuation_agreement=_prefix_share(ours.written, theirs["written"]),
        texts_alike=sum(alike),
        texts=len(alike),
    )


def _prefix_share(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Return the share of generated tokens before the first difference."""
    same = 0
    for one, other in zip(ours, theirs, strict=True):
        same += next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / max(1, sum(map(len, ours)))
