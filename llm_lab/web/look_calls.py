"""Calls that the worker of the page Look inside answers. It keeps the model and its measurements in memory.

The server ends the process when another model is requested, and after some time without a call.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.candidates import Candidate, find_candidate, require_loadable
from llm_lab.events import Event, Notice
from llm_lab.hf.load import quiet_libraries
from llm_lab.looking.explorer import data_of
from llm_lab.looking.findings import Difference, Findings
from llm_lab.looking.heads import ROWS, Repeats, ablate_heads, repeats_for
from llm_lab.looking.inside import ABLATION_ROWS, DEFAULT_TEXT, Inside, encode, look_inside, token_texts
from llm_lab.looking.lens import Readout, attribute
from llm_lab.looking.look import compare_with, open_precisely, release
from llm_lab.looking.look_tables import check_facts, head_rows, layer_rows, model_facts, plain, summary_of
from llm_lab.runner import load

LOADED = 2  # models in memory: one, and one to compare it with
KEPT_BYTES = 256 * 1024**2  # of earlier measurements, such as those of a run's checkpoints
RECORDINGS = 2  # recordings from which single heads and positions can be requested


@dataclass
class _Looked:
    """A model over a text, with the recording of everything inside."""

    inside: Inside
    remarks: list[str] = field(default_factory=list)


_models: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
_looked: OrderedDict[tuple[str, str], _Looked] = OrderedDict()
_answers: OrderedDict[tuple[str, str, str], str] = OrderedDict()
_repeats: dict[str, Repeats] = {}


def measure(
    model: str, prompt: str = "", against: str | None = None, checkpoint: str | None = None, chat: bool = False
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Measure a model, or one checkpoint of its run, over a text; yield progress as {"doing": words}.

    Returns what the page draws. prompt: empty for the built-in text. chat: whether it is a user's message, to be put
    into the model's chat template. UserError as `llm-lab look` raises it.
    """
    name = checkpoint or model
    key = (name, f"{chat} {prompt}", against or "")
    if key not in _answers:
        candidates = [find_candidate(one) for one in (name, against) if one]
        if len(candidates) > 1 and candidates[0].folder == candidates[1].folder:
            raise UserError(Problem("--against", "this is the same model", value=against, fix="Name another model."))
        require_loadable(candidates)
        yield {"doing": f"Loading {candidates[0].name} ..."}
        _open(candidates[0])
        text = _text_of(candidates[0], prompt, chat)
        yield {"doing": "Measuring ..."}
        looked = _look(candidates[0], text, model)
        difference = None
        if len(candidates) > 1:
            yield {"doing": f"Loading {candidates[1].name} ..."}
            _open(candidates[1])
            yield {"doing": "Comparing ..."}
            difference = compare_with(looked.inside, text, _open(candidates[1]), candidates[1], _take(looked))
        found = Findings(looked.inside, text, looked.remarks, difference)
        _keep(key, json.dumps(_answer_of(found), allow_nan=False))
    _answers.move_to_end(key)
    answer: dict[str, Any] = json.loads(_answers[key])
    return answer


def _text_of(candidate: Candidate, prompt: str, chat: bool) -> str:
    """Return the text that a model reads: the prompt itself, or the prompt as a user's message in its chat template."""
    if not prompt.strip():
        return DEFAULT_TEXT
    tokenizer = _open(candidate)[1]
    if not chat or not tokenizer.chat_template:
        return prompt
    message = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    begin = tokenizer.bos_token or ""
    adds_it = bool(begin) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(begin) if adds_it else text


def _take(looked: _Looked) -> Any:
    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            looked.remarks.append(event.text)

    return listen


def _open(candidate: Candidate) -> tuple[Any, Any]:
    """Return a model and its tokenizer; to make room, the least recently used one is removed."""
    quiet_libraries()
    folder = candidate.folder
    if folder not in _models:
        while len(_models) >= LOADED:
            _models.popitem(last=False)
        release()
        _models[folder] = open_precisely(candidate, load)
    _models.move_to_end(folder)
    return _models[folder]


def _look(candidate: Candidate, text: str, model: str) -> _Looked:
    """Return the recording of a model over a text. model: the one whose random tokens its checkpoints also use."""
    key = (candidate.folder, text)
    if key not in _looked:
        while len(_looked) >= RECORDINGS:
            _looked.popitem(last=False)
        network, tokenizer = _open(candidate)
        ids, remarks = encode(network, tokenizer, text)
        looked = _Looked(None, list(remarks))  # type: ignore[arg-type]
        looked.inside = look_inside(
            network,
            tokenizer,
            ids,
            name=candidate.name,
            folder=candidate.folder,
            ablation=False,
            repeats=_repeats_of(network, model),
            listener=_take(looked),
        )
        if looked.inside.repeats is not None:
            _repeats.setdefault(model, looked.inside.repeats)
        _looked[key] = looked
    _looked.move_to_end(key)
    return _looked[key]


def _repeats_of(network: Any, model: str) -> Repeats | None:
    """Return the random tokens used for a run's other checkpoints; None if there are none, or this one lacks some."""
    known = _repeats.get(model)
    rows = network.get_input_embeddings().weight.shape[0]
    return known if known is not None and int(known.ids.max()) < rows else None


def _keep(key: tuple[str, str, str], answer: str) -> None:
    _answers[key] = answer
    while sum(map(len, _answers.values())) > KEPT_BYTES and len(_answers) > 1:
        _answers.popitem(last=False)


def _answer_of(found: Findings) -> dict[str, Any]:
    inside = found.inside
    answer = {
        "text": found.text,
        "model": model_facts(inside),
        "loss": inside.loss,
        "summary": [line for line in summary_of(found) if line not in inside.missing.values()],
        "remarks": found.remarks,
        "missing": inside.missing,
        "maps": data_of(found, weight_bytes=2),
        "heads": head_rows(inside),
        "layers": layer_rows(inside),
        "cka": inside.cka,
        "sink": None if inside.sink is None else float(inside.sink.nan_to_num(0).mean()),
        "attribution": None if inside.attribution is None else _attribution_of(inside, inside.attribution),
        "checks": [check_facts(check) for check in inside.checks],
        "difference": None if found.difference is None else _difference_of(found.difference, inside),
    }
    kept: dict[str, Any] = plain(answer)
    return kept


def _attribution_of(inside: Inside, found: Any, word: str | None = None) -> dict[str, Any]:
    return {
        "position": found.position,
        "after": inside.text_tokens[found.position],
        "token": inside.lens_tokens[found.token] if word is None else word,
        "rows": [[name, logit, above] for name, logit, above in found.rows],
        "embedding": found.embedding,
        "attention": found.attention,
        "feed_forward": found.feed_forward,
        "heads": found.heads,
        "logit": found.logit,
        "above_mean": found.above_mean,
        "why": found.why,
    }


def _difference_of(found: Difference, inside: Inside) -> dict[str, Any]:
    words = found.other.lens_tokens
    tops = [] if found.other.lens is None else found.other.lens.tokens[-1, :, 0].tolist()
    own = [] if inside.lens is None else inside.lens.tokens[-1, :, 0].tolist()
    return {
        "name": found.other.name,
        "loss": found.other.loss,
        "induction": found.induction,
        "previous": found.previous,
        "attention": found.attention,
        "norms": found.norms,
        "cka": found.cka,
        "divergence": found.divergence,
        "predictions": [[inside.lens_tokens[a], words[b]] for a, b in zip(own, tops, strict=False)],
    }


def attribution(
    model: str, prompt: str, position: int, checkpoint: str | None = None, chat: bool = False
) -> dict[str, Any]:
    """Return which parts of a model contribute to its top prediction after one token of the text."""
    candidate, looked = _again(model, prompt, checkpoint, chat)
    network, tokenizer = _open(candidate)
    inside = looked.inside
    if not 0 <= position < len(inside.ids):
        raise UserError(Problem("position", "the text has no such token", position, f"0 to {len(inside.ids) - 1}"))
    readout = Readout(network, inside.recording)
    if readout.why:
        raise UserError(Problem("model", readout.why))
    found = attribute(network, readout, inside.recording, position=position)
    answer: dict[str, Any] = plain(_attribution_of(inside, found, token_texts(tokenizer, [found.token])[0]))
    return answer


def ablation(
    model: str, prompt: str, layer: int, head: int, checkpoint: str | None = None, chat: bool = False
) -> dict[str, Any]:
    """Return how much a model's losses rise without one head, on repeated random tokens and on the text."""
    candidate, looked = _again(model, prompt, checkpoint, chat)
    network, tokenizer = _open(candidate)
    inside = looked.inside
    repeats = inside.repeats or repeats_for(network, tokenizer, rows=ROWS)
    if not (0 <= layer < inside.layers and 0 <= head < inside.heads) or inside.recording.heads[layer] is None:
        raise UserError(Problem("head", "it can't be ablated: no output projection joins the heads of this layer"))
    few = Repeats(repeats.ids[:ABLATION_ROWS], repeats.length, repeats.start)
    repeated, own, [found] = ablate_heads(network, [(layer, head)], few, inside.ids)
    answer: dict[str, Any] = plain(
        {"layer": layer, "head": head, "repeated": found.repeated, "text": found.text, "losses": [repeated, own]}
    )
    return answer


def _again(model: str, prompt: str, checkpoint: str | None, chat: bool) -> tuple[Candidate, _Looked]:
    candidate = find_candidate(checkpoint or model)
    return candidate, _look(candidate, _text_of(candidate, prompt, chat), model)


CALLS = {"measure": measure, "attribution": attribution, "ablation": ablation}
