"""Matrix products through oneDNN: the same results as nn.Linear, and no other effect."""

import copy

import pytest
import torch
from support.tiny_models import tiny_model, tokens
from torch import nn

from llm_lab.training.cpu import MIN_ROWS, OneDnnLinear, keep_freed_memory, speed_up_products

AMD, INTEL = "AMD EPYC 9654", "Intel(R) Xeon(R) Platinum 8480+"
here_only = pytest.mark.skipif(
    not speed_up_products(nn.Linear(1, 1), AMD), reason="torch has no oneDNN for this processor"
)


def pair(inputs: int, outputs: int, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    usual = nn.Linear(inputs, outputs, bias=bias)
    fast = copy.deepcopy(usual)
    fast.__class__ = OneDnnLinear
    return usual, fast


@here_only
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (40, 24), (33, 1)])
def test_output_and_gradients_equal_those_of_linear(inputs, outputs, bias):
    usual, fast = pair(inputs, outputs, bias)
    x = torch.randn(3, MIN_ROWS, inputs)
    grad = torch.randn(3, MIN_ROWS, outputs)
    results = []
    for module in (usual, fast):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output.backward(grad)
        results.append([output, leaf.grad, *(parameter.grad for parameter in module.parameters())])
    assert type(results[1][0].grad_fn).__name__ == "_ProductBackward"
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@here_only
def test_a_second_pass_gives_the_same_bits():
    _, fast = pair(40, 24, False)
    x = torch.randn(2, MIN_ROWS, 40)
    passes = []
    for _ in range(2):
        fast.zero_grad()
        fast(x).square().sum().backward()
        passes.append(fast.weight.grad.clone())
    assert torch.equal(*passes)


@here_only
def test_a_frozen_weight_and_an_input_without_gradient_get_none():
    _, fast = pair(8, 4, False)
    fast(torch.randn(MIN_ROWS, 8)).sum().backward()
    fast.weight.requires_grad_(False)
    x = torch.randn(MIN_ROWS, 8, requires_grad=True)
    before = fast.weight.grad.clone()
    fast(x).sum().backward()
    assert torch.equal(fast.weight.grad, before)
    torch.testing.assert_close(x.grad, fast.weight.sum(0).expand_as(x))


@here_only
def test_other_dtypes_and_few_rows_use_the_default_path():
    usual, fast = pair(8, 4, True)
    few = torch.randn(MIN_ROWS - 1, 8)
    assert torch.equal(fast(few), usual(few))
    many = torch.randn(MIN_ROWS, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(many), usual(many))
    assert torch.equal(fast.double()(many.double()), usual.double()(many.double()))


@here_only
def test_a_model_trains_and_is_saved_as_with_plain_linear(tmp_path):
    model, ids = tiny_model(num_key_value_heads=2, tie_word_embeddings=True).train(), tokens(6, 16)
    plain = copy.deepcopy(model)
    assert speed_up_products(model, AMD)
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for one in (plain, model):
        one(ids, labels=ids).loss.backward()
    for (name, expected), got in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-6, msg=name)
    model.save_pretrained(tmp_path)
    assert not [file for file in tmp_path.iterdir() if "OneDnn" in file.read_text(errors="ignore")]
    again = type(model).from_pretrained(tmp_path)
    assert type(again.lm_head) is nn.Linear
    copy.deepcopy(model).load_state_dict(plain.state_dict())


def test_other_processors_keep_the_default():
    model = tiny_model()
    assert not speed_up_products(model, INTEL)
    assert all(type(module) is not OneDnnLinear for module in model.modules())


def test_keeping_freed_memory_does_not_fail():
    keep_freed_memory()
    assert torch.ones(2**20).sum() == 2**20
