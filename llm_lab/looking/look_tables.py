"""The numbers of a look: as rows for tables, as look.json, and in a few sentences."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_lab import __version__
from llm_lab.runs.svg import safe

from .findings import Findings
from .heads import INDUCTION, PREVIOUS
from .inside import Inside

Rows = list[dict[str, Any]]
SHOWN_HEADS = 5
# Each name with its meaning, because the summary is read without the page that explains it.
INDUCTION_HEADS = "Induction heads, which look at what followed the same token before (share of attention)"
PREVIOUS_HEADS = "Previous-token heads, which look at the token just before"
LENS = "Logit lens, which reads a prediction after each layer as if the model ended there"


def head_name(layer: int, head: int) -> str:
    """Return the name of a head as usual in the field: L5H1 is head 1 of layer 5, counted from 0."""
    return f"L{layer}H{head}"


def tables_of(looked: Findings) -> dict[str, Rows]:
    """Return the tables of a look by name, as rows."""
    inside = looked.inside
    found = {"heads": head_rows(inside), "layers": layer_rows(inside), "ablation": _ablation(inside)}
    found |= {"logit_lens": _lens(inside), "attribution": _attribution(inside)}
    if (difference := looked.difference) is not None:
        found["against"] = [
            {"token": token, "kl_bits": float(bits)}
            for token, bits in zip(inside.text_tokens, difference.divergence, strict=True)
        ]
    if looked.moments:
        found["steps"] = [
            {
                "checkpoint": moment.name,
                "step": moment.step,
                "highest_induction": _highest(moment.induction),
                "highest_previous": _highest(moment.previous),
                "loss_first_copy": moment.first_loss,
                "loss_second_copy": moment.second_loss,
                "loss_text": moment.text_loss,
            }
            for moment in looked.moments
        ]
    return {name: rows for name, rows in found.items() if rows}


def _highest(table: torch.Tensor | None) -> float | None:
    return None if table is None else float(table.nan_to_num(0).max())


def head_rows(inside: Inside) -> Rows:
    scores = inside.scores
    if scores is None or not inside.heads:
        return []
    per_head = inside.attribution.heads if inside.attribution is not None else None
    rows = []
    for layer in range(inside.layers):
        for head in range(inside.heads):
            row: dict[str, Any] = {"layer": layer, "head": head}
            for name in ("induction", "previous", "duplicate"):
                row[name] = _number(getattr(scores, name)[layer, head])
            row["first_token"] = None if inside.sink is None else _number(inside.sink[layer, head])
            row["entropy_bits"] = None if inside.entropy is None else _number(inside.entropy[layer, head])
            row["attribution"] = None if per_head is None else _number(per_head[layer, head])
            rows.append(row)
    return rows


def layer_rows(inside: Inside) -> Rows:
    rows: Rows = []
    for row in range(inside.layers + 1):
        found: dict[str, Any] = {"after_layer": row - 1 if row else None, "residual_norm": float(inside.norms[row])}
        if inside.added is not None:
            attention, other = inside.added[row - 1].tolist() if row else (math.nan, math.nan)
            share = attention / max(attention + other, 1e-30)
            found |= {"attention_norm": attention, "mlp_norm": other, "attention_share": share}
        found["mean_cosine"] = _number(inside.mean_similarity[row])
        if inside.lens is not None:
            found["lens_loss"] = _number(inside.lens.next_loss[row])
            found["lens_entropy_bits"] = float(inside.lens.entropy[row].mean())
        rows.append(found)
    return rows


def _ablation(inside: Inside) -> Rows:
    scores = inside.scores
    return [
        {
            "layer": one.layer,
            "head": one.head,
            "loss_rise_repeated": one.repeated,
            "loss_rise_text": one.text,
            "induction": None if scores is None else _number(scores.induction[one.layer, one.head]),
            "previous": None if scores is None else _number(scores.previous[one.layer, one.head]),
            "control": one.control,
        }
        for one in sorted(inside.ablations, key=lambda one: -one.repeated)
    ]


def _lens(inside: Inside) -> Rows:
    lens = inside.lens
    if lens is None:
        return []
    return [
        {
            "after_layer": row - 1 if row else None,
            "position": position,
            "token": inside.text_tokens[position],
            "rank": rank + 1,
            "predicted": inside.lens_tokens[int(lens.tokens[row, position, rank])],
            "probability": float(lens.probabilities[row, position, rank]),
        }
        for row in range(lens.tokens.shape[0])
        for position in range(lens.tokens.shape[1])
        for rank in range(lens.tokens.shape[2])
    ]


def _attribution(inside: Inside) -> Rows:
    found = inside.attribution
    if found is None:
        return []
    return [{"part": name, "logit": logit, "above_mean": above} for name, logit, above in found.rows]


def _number(value: torch.Tensor) -> float | None:
    """Return a number for JSON and tables, None for NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: no tensors, no NaN, numbers with five significant digits."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def lower_triangle(weights: torch.Tensor, bytes_each: int = 1) -> str:
    """Return causal weights between 0 and 1 as text: the rows of the lower triangle in base64.

    bytes_each: 1 (255 means 1.0), or 2, big-endian (65,535 means 1.0).
    """
    rows, columns = torch.tril_indices(weights.shape[-2], weights.shape[-1])
    kept = weights[..., rows, columns].nan_to_num(0)
    if bytes_each == 1:
        return _bytes(kept * 255)
    whole = (kept.double() * 65_535).round().clamp(0, 65_535)
    return _bytes(torch.stack([whole // 256, whole % 256], dim=-1))


def signed_lower_triangle(values: torch.Tensor) -> str:
    """Return values between -1 and 1 of a symmetric matrix as text: byte 127 means 0."""
    rows, columns = torch.tril_indices(values.shape[-2], values.shape[-1])
    return _bytes((values[..., rows, columns] + 1) * 127)


def _bytes(values: torch.Tensor) -> str:
    return b64encode(values.round().clamp(0, 255).to(torch.uint8).numpy().tobytes()).decode()


def document_of(looked: Findings) -> dict[str, Any]:
    """Return the contents of look.json."""
    inside = looked.inside
    document: dict[str, Any] = {
        "llm_lab": __version__,
        "model": model_facts(inside),
        "text": looked.text,
        "tokens": [{"id": token, "text": text} for token, text in zip(inside.ids, inside.text_tokens, strict=True)],
        "loss_text": inside.loss,
        "remarks": looked.remarks,
        "missing": inside.missing,
        "checks": [check_facts(check) for check in inside.checks],
        "induction_heads": [[*head, score] for head, score in inside.induction_heads()],
        "previous_token_heads": [[*head, score] for head, score in inside.previous_heads()],
        "every_head_ablated": inside.every_head_ablated,
    }
    if inside.scores is not None:
        document["repeated_random_tokens"] = {
            "loss_first_copy": inside.scores.first_loss,
            "loss_second_copy": inside.scores.second_loss,
            "length": None if inside.repeats is None else inside.repeats.length,
        }
    document["tables"] = tables_of(looked)
    if inside.lens is not None:
        document["lens_settled_at"] = inside.lens.settled
    if inside.attribution is not None:
        found = inside.attribution
        document["attribution_of"] = {
            "position": found.position,
            "token": inside.lens_tokens[found.token],
            "logit": found.logit,
            "sum": found.total,
            "above_mean": found.above_mean,
        }
    document["cka"] = inside.cka
    if (difference := looked.difference) is not None:
        other = difference.other
        document["against"] = {
            "model": model_facts(other),
            "loss_text": other.loss,
            "checks": [check_facts(check) for check in other.checks],
            "induction": difference.induction,
            "previous": difference.previous,
            "attention": difference.attention,
            "residual_norm": difference.norms,
            "cka": difference.cka,
        }
    if looked.moments:
        document["steps"] = [
            {"checkpoint": m.name, "step": m.step, "induction": m.induction, "previous": m.previous}
            for m in looked.moments
        ]
    document["attention"] = {
        "format": "by layer: for each head, the rows of the lower triangle, one byte per weight (255 is 1), in base64",
        "layers": [None if one is None else lower_triangle(one) for one in inside.recording.attention],
    }
    return plain(document)


def model_facts(inside: Inside) -> dict[str, Any]:
    """Return the facts about a measured model: its name, folder, architecture and sizes."""
    names = ("name", "folder", "architecture", "parameters", "layers", "heads")
    return {name: getattr(inside, name) for name in names} | {"hidden_size": inside.recording.residual.shape[-1]}


def check_facts(check: Any) -> dict[str, Any]:
    """Return a check of a measurement: its error, and the largest one that rounding can explain."""
    return {"name": check.name, "error": check.error, "limit": check.limit, "holds": check.holds}


def summary_of(looked: Findings) -> list[str]:
    """Return a summary of the findings, in a few sentences."""
    inside = looked.inside
    found = []
    if inside.scores is not None and inside.heads:
        count = inside.layers * inside.heads
        found.append(_named(INDUCTION_HEADS, inside.induction_heads(), count, INDUCTION))
        found.append(_named(PREVIOUS_HEADS, inside.previous_heads(), count, PREVIOUS))
        first, second = inside.scores.first_loss, inside.scores.second_loss
        verdict = "the model repeats what it has read" if second < first - 1 else "the model hardly uses the repetition"
        found.append(
            f"Random tokens, repeated once: loss {first:.2f} on the first copy, {second:.2f} on the second: {verdict}."
        )
    if inside.ablations and inside.induction_heads():
        found.append(_causal(inside))
    if (lens := inside.lens) is not None:
        settled = sorted(lens.settled.tolist())
        middle = settled[len(settled) // 2]
        where = f"already reached after layer {middle - 1}" if middle else "already reached before the first layer"
        where = where if middle < inside.layers else f"reached only after layer {middle - 1}, the last one"
        where += f" (the layers are 0 to {inside.layers - 1})"
        best = inside.lens_tokens[int(lens.tokens[-1, -1, 0])]
        found.append(
            f"{LENS}: for half of the tokens, the final prediction is {where}. "
            f"After the text, the model predicts “{best}”, with probability {float(lens.probabilities[-1, -1, 0]):.2f}."
        )
    found += list(inside.missing.values())
    if (difference := looked.difference) is not None:
        at = int(difference.divergence.argmax())
        found.append(
            f"Against {difference.other.name}: the loss on the text is {inside.loss:.3f} here and "
            f"{difference.other.loss:.3f} there; the predictions differ by "
            f"{float(difference.divergence.mean()):.3f} bits on average (KL divergence; 0 where "
            f"they are the same), most after “{inside.text_tokens[at]}”."
        )
    if looked.moments:
        found.append(_over_time(looked))
    return found


def _named(what: str, heads: Sequence[tuple[tuple[int, int], float]], of: int, least: float) -> str:
    if not heads:
        return f"{what}: none of {of:,} heads scores {least} or more."
    names = ", ".join(f"{head_name(*head)} ({score:.2f})" for head, score in heads[:SHOWN_HEADS])
    more = f" and {len(heads) - SHOWN_HEADS:,} more" if len(heads) > SHOWN_HEADS else ""
    return f"{what}: {names}{more}, of {of:,} heads."


def _causal(inside: Inside) -> str:
    """Return what ablation says about the head with the highest induction score."""
    scores = inside.scores
    assert scores is not None
    ablated = sorted(inside.ablations, key=lambda one: -float(scores.induction[one.layer, one.head]))
    best = ablated[0]
    others = [one for one in ablated[1:] if one.control or inside.every_head_ablated]
    score = float(scores.induction[best.layer, best.head])
    text = (
        f"Without {head_name(best.layer, best.head)}, the head with the highest induction score ({score:.2f}), "
        f"the loss on repeated tokens rises by {best.repeated:.3f}"
    )
    if not others:
        return f"{text}."
    most = max(others, key=lambda one: one.repeated)
    kind = "one of the other heads" if inside.every_head_ablated else f"one of {len(others)} random heads"
    which = head_name(most.layer, most.head)
    if float(scores.previous[most.layer, most.head]) >= PREVIOUS:
        which += ", a previous-token head"
    elif float(scores.induction[most.layer, most.head]) >= INDUCTION:
        which += ", an induction head too"
    return f"{text}; without {kind}, by at most {most.repeated:.3f} ({which})."


def _over_time(looked: Findings) -> str:
    known = [(m, _highest(m.induction)) for m in looked.moments]
    first = next((m for m, score in known if score is not None and score >= INDUCTION), None)
    if first is None:
        return f"Over {len(known)} checkpoints, no head's induction score reaches {INDUCTION}."
    return f"Over {len(known)} checkpoints, the first with an induction score of {INDUCTION} or more is {first.name}."


def notebook_html(looked: Findings, page: Path | None) -> str:
    """Return the summary for a notebook. Every text is escaped."""
    lines = "".join(f"<li>{safe(line)}</li>" for line in summary_of(looked))
    where = "" if page is None else f"<p>Pictures: <code>{safe(str(page))}</code></p>"
    return f"<div><b>Inside {safe(looked.inside.name)}</b><ul>{lines}</ul>{where}</div>"
