"""What each layer would predict (logit lens), and which parts contribute to a prediction (direct logit attribution)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .anatomy import Anatomy, find_parts
from .recording import Recording, tolerance

TOP = 5
PROBE = 100.0  # large enough that a norm's epsilon has no influence
CHUNK = 64


class Readout:
    """From the residual stream to logits: the final norm and the head, found and checked on one recording.

    error: the largest difference from the model's logits, relative to their size. why: the reason if there is no
    readout, or "".
    """

    def __init__(self, model: Any, recording: Recording):
        self._anatomy: Anatomy = find_parts(model)
        self._device, self._dtype = model.device, model.dtype
        self._cap: float | None = None
        self._scale = 1.0
        self.norm: Any = None
        self.error = float("inf")
        self.why = ""
        self._find_norm(recording)
        if not self.why:
            self._find_finish(model, recording)
            if self.error > 10 * tolerance(model):
                self.why = (
                    "the final norm and the head do not give the model's logits: the model computes something else "
                    "between them"
                )

    def _find_norm(self, recording: Recording) -> None:
        """Find the module that turns the last residual into the input of the head."""
        if self._anatomy.head is None or not recording.head_input.numel():
            self.why = "this architecture has no language model head that is one module"
            return
        last, wanted = recording.residual[-1], recording.head_input
        for candidate in (None, *self._anatomy.after_layers):
            try:
                found = self._normed(last, candidate)
            except (TypeError, RuntimeError, ValueError):
                continue  # not a module for hidden states, such as position embeddings
            if found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max())):
                self.norm = candidate
                return
        self.why = "the head's input is not the final norm of the last layer's output"

    def _find_finish(self, model: Any, recording: Recording) -> None:
        """Find what the model does with the head's output: nothing, a scale, or a soft-cap."""
        config = model.config.get_text_config()
        raw, wanted = self.head(recording.head_input), recording.logits
        self._cap = getattr(config, "final_logit_softcapping", None)
        if self._cap is None:
            size = (raw * raw).sum()
            scale = float((raw * wanted).sum() / size) if size > 0 else 1.0
            self._scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        self.error = float((self.finish(raw) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))

    @torch.no_grad()
    def _normed(self, states: torch.Tensor, norm: Any) -> torch.Tensor:
        if norm is None:
            return states
        out = norm(states[None].to(self._device, self._dtype))
        if not torch.is_tensor(out):
            raise TypeError
        return out[0].float().cpu()

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the final norm to (length, hidden_size)."""
        return self._normed(states, self.norm)

    @torch.no_grad()
    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head to normed states (length, hidden_size)."""
        return self._anatomy.head(states[None].to(self._device, self._dtype))[0].float().cpu()

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Apply the scale or soft-cap of the model to the head's output."""
        return self._cap * torch.tanh(raw / self._cap) if self._cap is not None else raw * self._scale

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits for residual states (length, hidden_size) at the end of the model."""
        return self.finish(self.head(self.normed(states)))


@dataclass(frozen=True)
class Lens:
    """What each layer would predict after each token. The first axis: before the first layer, and after each layer.

    tokens, probabilities: (layers + 1, length, k), the top k. entropy: (layers + 1, length), in bits. next_loss:
    (layers + 1,) mean loss on the tokens that follow, in nats. settled: (length,) the first layer from which the top
    token stays that of the model. error: of the last row against the model's logits.
    """

    tokens: torch.Tensor
    probabilities: torch.Tensor
    entropy: torch.Tensor
    next_loss: torch.Tensor
    settled: torch.Tensor
    error: float


def logit_lens(readout: Readout, recording: Recording, *, top: int = TOP) -> Lens:
    """Return the logit lens (nostalgebraist, 2020): the final norm and head after every layer."""
    tokens, probabilities, entropy, losses = [], [], [], []
    error = 0.0
    for row, states in enumerate(recording.residual):
        logits = readout.logits(states)
        if row == len(recording.residual) - 1:
            size = recording.logits.abs().max().clamp_min(1e-12)
            error = float((logits - recording.logits).abs().max() / size)
        logs = logits.log_softmax(-1)
        best = logs.exp().topk(min(top, logs.shape[-1]), dim=-1)
        tokens.append(best.indices)
        probabilities.append(best.values)
        entropy.append(-(logs.exp() * logs).sum(-1) / torch.log(torch.tensor(2.0)))
        losses.append(
            F.nll_loss(logs[:-1], recording.ids[1:]) if len(recording.ids) > 1 else torch.tensor(float("nan"))
        )
    found = torch.stack(tokens)
    same = found[:, :, 0] == found[-1, :, 0]
    # The first row from which all rows have the token of the last row.
    settled = len(same) - same.flip(0).long().cumprod(0).sum(0)
    return Lens(found, torch.stack(probabilities), torch.stack(entropy), torch.stack(losses), settled, error)


@dataclass(frozen=True)
class Attribution:
    """The contribution of each part to the logit of one token at one position; they sum to the logit.

    rows: (name, contribution to the logit, contribution to the logit above the vocabulary's mean). heads: (layers,
    heads), the latter for each head, or None. total, above_mean: the sums. logit: the model's own, before a soft-cap.
    error: that of the sum, relative to the logits' size. why: why there is no attribution by head, or "".
    """

    position: int
    token: int
    rows: list[tuple[str, float, float]]
    embedding: float
    attention: torch.Tensor | None
    feed_forward: torch.Tensor | None
    heads: torch.Tensor | None
    logit: float
    total: float
    above_mean: float
    error: float
    why: str


@dataclass(frozen=True)
class _FrozenNorm:
    """The final norm as a linear map, with its scale fixed at that of one vector."""

    weight: torch.Tensor
    bias: torch.Tensor
    centers: bool
    error: float

    def apply(self, states: torch.Tensor) -> torch.Tensor:
        states = states - states.mean(-1, keepdim=True) if self.centers else states
        return states * self.weight


def _freeze(readout: Readout, state: torch.Tensor) -> _FrozenNorm:
    """Return the final norm as the linear map that it is around one state (hidden_size,).

    The norm is only called, and its parameters are not read, so this works for RMSNorm and LayerNorm under any name;
    the error shows whether it did.
    """
    size = state.shape[-1]
    if readout.norm is None:
        return _FrozenNorm(torch.ones(size), torch.zeros(size), False, 0.0)
    probe = torch.ones(size) * PROBE
    probe[1::2] = -PROBE
    zero, shifted, plain = readout.normed(torch.stack([torch.zeros(size), probe + PROBE / 2, probe]))
    centers = bool(torch.allclose(shifted, plain, atol=1e-3 * float(plain.abs().max())))
    centered = probe - probe.mean() if centers else probe
    weight = (plain - zero) * centered.square().mean().sqrt() / centered
    own = state - state.mean() if centers else state
    target = readout.normed(state[None])[0] - zero
    unscaled = own * weight
    scale = (target * unscaled).sum() / unscaled.square().sum().clamp_min(1e-30)
    error = float((target - scale * unscaled).norm() / target.norm().clamp_min(1e-12))
    return _FrozenNorm(weight * scale, zero, centers, error)


@torch.no_grad()
def attribute(
    model: Any, readout: Readout, recording: Recording, *, position: int = -1, token: int | None = None
) -> Attribution:
    """Return the direct logit attribution of a token at a position: the model's top token at the end by default.

    Each part of the residual stream goes through the final norm, with the scale of the whole stream, and the head.
    """
    position = position % len(recording.ids)
    target = int(recording.logits[position].argmax()) if token is None else token
    frozen = _freeze(readout, recording.residual[-1][position])
    names, parts = ["embedding"], [recording.residual[0][position]]
    known = all(part is not None for part in recording.parts)
    for index, part in enumerate(recording.parts):
        if known and part is not None:
            names += [f"attention {index}", f"feed-forward {index}"]
            parts += [part.attention[position], part.feed_forward[position]]
        else:
            names.append(f"layer {index}")
            parts.append(recording.residual[index + 1][position] - recording.residual[index][position])
    constant = readout.head(torch.zeros(1, len(frozen.bias)))[0]
    rest = readout.head(frozen.bias[None])[0]  # the contribution of the biases of norm and head
    added = _through_head(readout, frozen, torch.stack(parts), constant, target) * readout._scale
    names.append("biases")
    bias = torch.tensor([rest[target], rest[target] - rest.mean()]) * readout._scale
    added = torch.cat([added, bias[None]])
    raw = readout.head(readout.normed(recording.residual[-1][position : position + 1]))[0] * readout._scale
    total, above = added.sum(0).tolist()
    heads, why = (
        _by_head(model, readout, recording, frozen, constant, position, target) if known else (None, recording.why)
    )
    layers = len(recording.parts)
    return Attribution(
        position=position,
        token=target,
        rows=[(name, *row) for name, row in zip(names, added.tolist(), strict=True)],
        embedding=float(added[0, 1]),
        attention=added[1 : 1 + 2 * layers : 2, 1] if known else None,
        feed_forward=added[2 : 2 + 2 * layers : 2, 1] if known else None,
        heads=heads,
        logit=float(raw[target]),
        total=total,
        above_mean=above,
        error=abs(total - float(raw[target])) / float(raw.abs().max().clamp_min(1e-12)),
        why=why,
    )


def _through_head(
    readout: Readout, frozen: _FrozenNorm, parts: torch.Tensor, constant: torch.Tensor, target: int
) -> torch.Tensor:
    """Return the contribution of each part to the target's logit, and to its excess over the mean: (parts, 2)."""
    found = []
    for chunk in frozen.apply(parts).split(CHUNK):
        logits = readout.head(chunk) - constant
        found.append(torch.stack([logits[:, target], logits[:, target] - logits.mean(-1)], dim=-1))
    return torch.cat(found)


def _by_head(
    model: Any,
    readout: Readout,
    recording: Recording,
    frozen: _FrozenNorm,
    constant: torch.Tensor,
    position: int,
    target: int,
) -> tuple[torch.Tensor | None, str]:
    """Return the contribution of each head to the logit above the mean, (layers, heads); or None and the reason.

    A head's contribution is the output projection of that head's output alone.
    """
    anatomy = find_parts(model)
    count = model.config.get_text_config().num_attention_heads
    rows = []
    for index, (part, given, output) in enumerate(zip(recording.parts, recording.heads, anatomy.outputs, strict=True)):
        if recording.attention[index] is None:
            rows.append(torch.full((count,), float("nan")))
            continue
        if part is None or given is None or output is None or given.shape[-1] % count:
            return None, f"layer {index} has no output projection that joins the heads"
        masks = torch.eye(count).repeat_interleave(given.shape[-1] // count, dim=1)
        inputs = torch.cat([masks * given[position], torch.zeros(1, given.shape[-1]), given[position : position + 1]])
        outputs = output(inputs[None].to(model.device, model.dtype))[0].float().cpu()
        alone, bias, whole = outputs[:count] - outputs[count], outputs[count], outputs[count + 1]
        own = part.attention[position]
        scale = (own * whole).sum() / whole.square().sum().clamp_min(1e-30)  # Granite scales its contributions
        limit = tolerance(model) * float(own.norm().clamp_min(1e-6))
        if (own - scale * whole).norm() > limit or (alone.sum(0) + bias - whole).norm() > limit:
            return None, f"in layer {index}, what the heads add is changed before it reaches the residual stream"
        rows.append(_through_head(readout, frozen, scale * alone, constant, target)[:, 1] * readout._scale)
    return torch.stack(rows), ""
