"""Scores of heads and the effect of ablation, on a model whose heads are known, and by hand."""

import math

import pytest
import torch
from support.looked_at import model_named, text

from llm_lab.errors import UserError
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.looking.heads import (
    Repeats,
    ablate,
    ablate_heads,
    entropies,
    ordinary_tokens,
    repeated_loss,
    repeated_tokens,
    repeats_for,
    score_heads,
    text_loss,
)
from llm_lab.looking.recording import record
from llm_lab.looking.similarity import cka, mean_similarity, position_similarity


def test_random_tokens_are_repeated_once_and_differ_within_a_copy():
    found = repeated_tokens(range(10, 40), length=12, rows=3, start=5)
    assert found.ids.shape == (3, 25)
    assert (found.ids[:, 0] == 5).all()
    assert torch.equal(found.ids[:, 1:13], found.ids[:, 13:])
    assert all(len(set(row)) == 12 for row in found.ids[:, 1:13].tolist())
    assert torch.equal(found.ids, repeated_tokens(range(10, 40), length=12, rows=3, start=5).ids)


def test_ordinary_tokens_are_text_and_not_special():
    model = model_named("ours")
    tokenizer = make_byte_tokenizer()
    found = ordinary_tokens(model, tokenizer)
    assert {tokenizer.decode([token]) for token in found} <= {chr(code) for code in range(33, 127)}
    assert 1 not in ordinary_tokens(model)  # its end token


def test_tokens_of_a_small_vocabulary_that_a_model_never_predicts_are_left_out():
    from support.tiny_models import tiny_model

    model = tiny_model()
    hook = model.lm_head.register_forward_hook(lambda module, args, output: _only(output, range(10, 40)))
    try:
        found = set(repeats_for(model, rows=20).ids.flatten().tolist())
    finally:
        hook.remove()
    assert found == set(range(10, 40))


def _only(logits, tokens):
    """Return logits that predict only these tokens."""
    allowed = torch.full_like(logits, -30.0)
    allowed[..., list(tokens)] = 0.0
    return allowed


def test_scores_are_the_means_of_the_attention_at_the_positions_of_a_pattern():
    model, length = model_named("ours"), 8
    repeats = repeated_tokens(range(2, 61), length=length, rows=2, start=1)
    found = score_heads(model, repeats)
    recordings = [record(model, row).attention for row in repeats.ids]
    for layer in range(2):
        for head in range(4):
            weights = [attention[layer][head] for attention in recordings]
            rows = range(1 + length, 1 + 2 * length)
            induction = [float(w[i, i - length + 1]) for w in weights for i in rows]
            duplicate = [float(w[i, i - length]) for w in weights for i in rows]
            previous = [float(w[i, i - 1]) for w in weights for i in range(2, 17)]
            first = [float(w[i, 0]) for w in weights for i in range(2, 17)]
            for name, values in (
                ("induction", induction),
                ("duplicate", duplicate),
                ("previous", previous),
                ("first", first),
            ):
                assert float(getattr(found, name)[layer, head]) == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_the_losses_of_the_two_copies_are_those_of_their_tokens():
    model = model_named("ours")
    repeats = repeated_tokens(range(2, 61), length=6, rows=1)
    with torch.no_grad():
        logs = model(repeats.ids).logits[0].log_softmax(-1)
    losses = [-float(logs[i, repeats.ids[0, i + 1]]) for i in range(11)]
    found = score_heads(model, repeats)
    assert found.first_loss == pytest.approx(sum(losses[:5]) / 5, rel=1e-5)
    assert found.second_loss == pytest.approx(sum(losses[6:]) / 5, rel=1e-5)
    assert repeated_loss(model, repeats) == pytest.approx(found.second_loss, rel=1e-5)


def test_a_model_with_a_context_that_is_too_small_is_refused():
    from support.tiny_models import tiny_model

    with pytest.raises(UserError, match="context"):
        repeats_for(tiny_model(max_position_embeddings=7))


def test_ablation_reports_the_rise_of_both_losses_and_restores_the_model():
    model = model_named("ours")
    repeats = repeats_for(model, rows=1)
    repeated, own, found = ablate_heads(model, [(0, 1), (1, 3)], repeats, text(), controls=[(1, 3)])
    assert [(one.layer, one.head, one.control) for one in found] == [(0, 1, False), (1, 3, True)]
    with ablate(model, [(0, 1)]):
        assert found[0].repeated == pytest.approx(repeated_loss(model, repeats) - repeated)
        assert found[0].text == pytest.approx(text_loss(model, text()) - own)
    assert found[0].repeated != 0
    assert repeated_loss(model, repeats) == repeated
    with pytest.raises(IndexError), ablate(model, [(0, 4)]):
        pass


def test_scores_of_a_perfect_induction_head_and_a_previous_token_head_are_one():
    length = 5
    repeats = Repeats(torch.tensor([[10, 11, 12, 13, 14] * 2]), length)
    model = model_named("ours")
    weights = torch.zeros(1, 4, 10, 10)
    for i in range(10):
        weights[0, 0, i, i - length + 1 if i >= length else i] = 1  # induction
        weights[0, 1, i, max(i - 1, 0)] = 1  # previous token
        weights[0, 2, i, 0] = 1  # the first token
        weights[0, 3, i, max(i - length, 0)] = 1  # the same token
    hook = model.model.layers[1].self_attn.register_forward_hook(lambda module, args, output: (output[0], weights))
    try:
        found = score_heads(model, repeats)
    finally:
        hook.remove()
    assert found.induction[1, 0] == found.previous[1, 1] == found.first[1, 2] == found.duplicate[1, 3] == 1
    assert found.induction[1, 1] == found.previous[1, 0] == 0


def test_entropy_is_in_bits_and_leaves_out_the_first_position():
    weights = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0], [1.0, 0, 0]]])
    assert entropies(weights).tolist() == [0.5]


def test_similarity_of_positions_is_their_cosine():
    states = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    found = position_similarity(states)
    a, b = states[2, 1], states[2, 4]
    assert float(found[2, 1, 4]) == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-6)
    pairs = [float(found[0, i, j]) for i in range(1, 5) for j in range(1, 5) if i != j]
    assert float(mean_similarity(found)[0]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_cka_equals_the_formula_and_ignores_rotations_and_scales():
    import numpy as np

    def unbiased_hsic(k, other):
        n = len(k)
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        terms = np.trace(k @ other)
        terms += k.sum() * other.sum() / ((n - 1) * (n - 2))
        terms -= 2 / (n - 2) * (k @ other).sum()
        return terms / (n * (n - 3))

    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 12, size, generator=generator) for size in (6, 9))
    found = cka(first, second)
    x, y = first[1].double().numpy(), second[0].double().numpy()
    grams = [(m - m.mean(0)) @ (m - m.mean(0)).T for m in (x, y)]
    wanted = unbiased_hsic(*grams) / math.sqrt(unbiased_hsic(grams[0], grams[0]) * unbiased_hsic(grams[1], grams[1]))
    assert float(found[1, 0]) == pytest.approx(wanted, abs=1e-5)
    assert abs(float(found[1, 0])) < 0.3  # random states of few tokens are not similar
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    torch.testing.assert_close(cka(first, first @ rotation * 3 + 1).diagonal(), torch.ones(2))
    with pytest.raises(ValueError, match="at least 4"):
        cka(first[:, :3], second[:, :3])
