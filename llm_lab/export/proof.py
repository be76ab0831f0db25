"""Proof that an exported model is the one it was made from: loaded as others load it, and asked the same."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError
from llm_lab.estimate.compatibility import LLAMA_CPP, TRANSFORMERS, Loads

from .probe import Answers, Probe

PROVEN, FAILED, NOT_TRIED = "proven", "failed", "not tried"
# The largest difference of logits, by the largest logit, that rounding explains. Transformers reads into float32,
# so that only the weights' own rounding shows; llama.cpp rounds what it multiplies as the weights are. It is told to
# keep its cache in f32: in f16, its default, it would differ by more than f16 weights do, whatever the file holds.
# q8_0 is lossy, most so in narrow models: what it is held by is the share of likeliest tokens.
TOLERANCES = {
    TRANSFORMERS: {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.2},
    LLAMA_CPP: {"f32": 1e-3, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.4},
}
GREEDY = {"f32": 0.99, "f16": 0.99, "bf16": 0.95, "q8_0": 0.9}  # the least share of equal likeliest tokens
_SOURCE = Path(__file__).with_name("fresh_process.py")


@dataclass(frozen=True)
class Check:
    """What one program made of an exported model.

    reason: why it failed, or was not tried. logit_difference: the largest, in logits; relative: by the largest
    logit. greedy_agreement: share of `positions` with the same likeliest token; continuation_agreement: of the
    tokens written freely, up to the first that differs. texts: how many of them were split into the same tokens.
    """

    program: str
    verdict: str
    reason: str = ""
    loaded_as: str = ""
    logit_difference: float | None = None
    relative_logit_difference: float | None = None
    tolerance: float | None = None
    greedy_agreement: float | None = None
    positions: int = 0
    continuation_agreement: float | None = None
    texts_alike: int = 0
    texts: int = 0

    def describe(self) -> str:
        """Return it in one line."""
        if self.logit_difference is None:
            return f"{self.program}: {self.verdict}: {self.reason}"
        numbers = (
            f"logits differ by at most {self.logit_difference:.2g} ({self.relative_logit_difference:.2g} of their "
            f"size; {self.tolerance:.2g} is allowed), {100 * self.greedy_agreement:.4g} % of {self.positions:,} "
            f"likeliest tokens are the same, {100 * self.continuation_agreement:.4g} % of what it writes freely, "
            f"and {self.texts_alike} of {self.texts} texts are read alike"
        )
        why = f": {self.reason}" if self.reason else ""
        return f"{self.program}: {self.verdict}{why} (as {self.loaded_as}; {numbers})"


@dataclass(frozen=True)
class Proof:
    """What all programs made of it: proven where one shows it and none denies it."""

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        verdicts = {check.verdict for check in self.checks}
        return FAILED if FAILED in verdicts else PROVEN if PROVEN in verdicts else NOT_TRIED

    def as_dict(self) -> dict[str, Any]:
        """Return it for run.json."""
        return {"verdict": self.verdict, "checks": [asdict(check) for check in self.checks]}

    def describe(self) -> str:
        """Return it in a few lines."""
        return "\n".join(check.describe() for check in self.checks)


def prove_folder(
    folder: Path, probe: Probe, ours: Answers, *, own_code: bool, weights: str, tolerance: float | None = None
) -> Proof:
    """Load a Hugging Face folder as others do, and compare. own_code: it is loaded with trust_remote_code."""
    job = {"loader": TRANSFORMERS, "folder": str(folder), "file": None, "trust_remote_code": own_code}
    return Proof(tuple(_check([job], probe, ours, weights, tolerance)))


def prove_gguf(
    file: Path, probe: Probe, ours: Answers, loads: Loads, *, weights: str, tolerance: float | None = None
) -> Proof:
    """Load a GGUF file in llama.cpp, where it is installed, and in Transformers, where that reads it; compare."""
    left_out, programs = [], []
    if importlib.util.find_spec("llama_cpp") is None:
        left_out.append(Check(LLAMA_CPP, NOT_TRIED, "llama-cpp-python is not installed"))
    else:
        programs.append(LLAMA_CPP)
    if TRANSFORMERS in loads.gguf_readers:
        programs.append(TRANSFORMERS)
    else:
        left_out.append(Check(TRANSFORMERS, NOT_TRIED, loads.gguf_reason))
    jobs = [{"loader": name, "folder": str(file.parent), "file": file.name} for name in programs]
    return Proof((*_check(jobs, probe, ours, weights, tolerance), *left_out))


def _check(
    jobs: Sequence[Mapping[str, Any]], probe: Probe, ours: Answers, weights: str, tolerance: float | None
) -> list[Check]:
    return [
        replace(
            compare(ours, answers, tolerance or TOLERANCES[job["loader"]][weights], GREEDY[weights]),
            program=job["loader"] + ("' reader of GGUF" if job["loader"] == TRANSFORMERS and job["file"] else ""),
        )
        for job, answers in zip(jobs, ask_others([(job, probe) for job in jobs]), strict=True)
    ]


def ask_others(jobs: Sequence[tuple[Mapping[str, Any], Probe]]) -> list[dict[str, Any]]:
    """Ask models in one new process in which LLM Lab can't be imported; returns answers, or their "error".

    jobs: of each, the loader, folder, file (of GGUF, or None) and trust_remote_code, and its questions. LabError
    where the process itself dies.
    """
    import numpy
    import torch

    if not jobs:
        return []
    with tempfile.TemporaryDirectory(prefix="llm-lab-proof-") as home:
        told = [
            {**asdict(probe), "trust_remote_code": False, "threads": torch.get_num_threads(), **job}
            | {"folder": os.path.abspath(job["folder"]), "logits": f"{home}/{index}.npy"}
            for index, (job, probe) in enumerate(jobs)
        ]
        questions, answers = Path(home, "jobs.json"), Path(home, "answers.json")
        questions.write_text(json.dumps(told), encoding="utf-8")
        # A cache of code of its own, or an older copy of a folder's code could be what is loaded.
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{home}/modules", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", _SOURCE.read_text(encoding="utf-8"), str(questions), str(answers)]
        ended = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise LabError(f"the process that loads the export ended with {ended.returncode}: {last[:300]}")
        found = json.loads(answers.read_text(encoding="utf-8"))
        for answer, job in zip(found, told, strict=True):
            if "error" not in answer:
                answer["logits"] = numpy.load(job["logits"])
        return found


def compare(ours: Answers, theirs: Mapping[str, Any], tolerance: float, least_greedy: float) -> Check:
    """Hold another program's answers against ours."""
    import numpy

    if "error" in theirs:
        return Check("", FAILED, f"it does not load: {theirs['error'][:300]}")
    one, other = ours.logits, theirs["logits"]
    if one.shape != other.shape:
        return Check("", FAILED, f"it has logits of {other.shape[-1]:,} tokens, not {one.shape[-1]:,}")
    difference = float(numpy.abs(one - other).max())
    relative = difference / max(float(numpy.abs(one).max()), 1e-12)
    greedy = float((one.argmax(-1) == other.argmax(-1)).mean())
    alike = [list(a) == b for a, b in zip(ours.texts, theirs["texts"], strict=True)]
    why = []
    if not relative <= tolerance:  # a NaN is no proof
        why.append("its logits are others")
    if greedy < least_greedy:
        why.append(f"of its likeliest tokens, {100 * least_greedy:.0f} % must be the same")
    if not all(alike):
        why.append(f"its tokenizer reads text {alike.index(False) + 1} of the proof differently")
    if list(ours.decoded) != theirs["decoded"]:
        why.append("its tokenizer writes the same tokens as another text")
    if ours.chat is not None and theirs["chat"] not in (ours.chat, None):
        why.append("its chat template writes another text")
    unseen = "its chat template could not be tried" if ours.chat is not None and theirs["chat"] is None else ""
    return Check(
        program="",
        verdict=FAILED if why else PROVEN,
        reason="; ".join(why) or unseen,
        loaded_as=theirs["loaded_as"],
        logit_difference=difference,
        relative_logit_difference=relative,
        tolerance=tolerance,
        greedy_agreement=greedy,
        positions=len(one),
        continuation_agreement=_prefix_share(ours.written, theirs["written"]),
        texts_alike=sum(alike),
        texts=len(alike),
    )


def _prefix_share(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Return the share of tokens, written freely, before the two differ."""
    same = 0
    for one, other in zip(ours, theirs, strict=True):
        same += next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / max(1, sum(map(len, ours)))
