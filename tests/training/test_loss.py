"""The chunked loss: the same loss and gradients as the plain loss, in less memory, for every supported model."""

import gc

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_config, tokens
from torch.nn import functional as F
from transformers import AutoModelForCausalLM as AutoModel
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.training import loss as token_loss
from llm_lab.training.cpu import OneDnnLinear
from llm_lab.training.loss import (
    PLAIN_HEADS,
    detach_large_head,
    linear_cross_entropy,
    next_token_loss,
    sample_labels,
    total_loss,
)

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA_LIKE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
MODELS = {
    "llm_lab": lambda: LabForCausalLM(tiny_config(tie_word_embeddings=False)),
    "llm_lab tied": lambda: LabForCausalLM(tiny_config("alibi", tie_word_embeddings=True)),
    "llama": lambda: AutoModel.from_config(LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True)),
    "mistral": lambda: AutoModel.from_config(MistralConfig(**LLAMA_LIKE)),
    "qwen2": lambda: AutoModel.from_config(Qwen2Config(**LLAMA_LIKE)),
    "qwen3": lambda: AutoModel.from_config(Qwen3Config(**LLAMA_LIKE)),
    "gpt2": lambda: AutoModel.from_config(
        GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ),
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of seven tokens; with 2 × 12 tokens, the last one is shorter."""
    monkeypatch.setattr(token_loss, "PIECE_OF_LOGITS_BYTES", 4 * 61 * 7)


def labels_of(ids):
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = labels[0, :3] = -100
    return labels


def loss_and_gradients(model, ids, labels, *, chunked, dtype="float32", function=next_token_loss):
    model.zero_grad()
    if chunked:
        with detach_large_head(model, ids.numel()) as head:
            assert head is not None
            loss = function(model, ids, labels, "cpu", dtype, head)
    else:
        loss = function(model, ids, labels, "cpu", dtype)
    (loss * 0.25).backward()  # as gradient accumulation does
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_every_supported_model_type_is_tested():
    assert {name.split()[0] for name in MODELS} == set(PLAIN_HEADS)


@pytest.mark.parametrize("kind", MODELS)
def test_the_chunked_loss_and_its_gradients_equal_the_plain_ones(kind, small_chunks):
    torch.manual_seed(0)
    model, ids = MODELS[kind]().train(), tokens(2, 12)
    labels = labels_of(ids)
    loss, gradients = loss_and_gradients(model, ids, labels, chunked=False)
    got, found = loss_and_gradients(model, ids, labels, chunked=True)
    torch.testing.assert_close(got, loss, rtol=1e-6, atol=1e-6)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["llm_lab", "llm_lab tied"])
def test_under_bf16_autocast_the_chunked_loss_is_as_close_to_float32_as_the_plain_one(kind, small_chunks):
    torch.manual_seed(0)
    model, ids = MODELS[kind]().train(), tokens(2, 12)
    labels = labels_of(ids)
    exact, gradients = loss_and_gradients(model, ids, labels, chunked=False)
    errors = {}
    for chunked in (False, True):
        loss, found = loss_and_gradients(model, ids, labels, chunked=chunked, dtype="bfloat16")
        assert loss.dtype == torch.float32
        assert loss == pytest.approx(exact.item(), rel=5e-3)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        errors[chunked] = {n: (found[n] - g).norm() / g.norm() for n, g in gradients.items()}
    for name, error in errors[False].items():
        assert errors[True][name] < 1.5 * error + 0.01, name


def test_the_compiled_chunked_loss_equals_the_plain_one_and_keeps_the_logits_out_of_the_graph(small_chunks):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, ids = MODELS["llm_lab tied"]().train(), tokens(2, 12)
    labels, graphs = labels_of(ids), []

    def keep_graph(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(next_token_loss, backend=keep_graph)
    loss, gradients = loss_and_gradients(model, ids, labels, chunked=False)
    got, found = loss_and_gradients(model, ids, labels, chunked=True, function=compiled)
    torch.testing.assert_close(got, loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    values = [
        node.meta["example_value"] for graph in graphs for node in graph.graph.nodes if node.op == "call_function"
    ]
    shapes = [value.shape for value in values if torch.is_tensor(value)]
    assert (2, 12, 32) in shapes
    # Inside the graph, several chunks of logits would be in memory at the same time.
    assert not [shape for shape in shapes if shape[-1:] == (61,)]


def test_a_chunk_compiled_and_padded_as_on_a_gpu_has_the_same_loss_and_gradients():
    torch.manual_seed(0)
    weight, states, targets = torch.randn(61, 8), torch.randn(5, 8), torch.tensor([3, -100, 60, 0, 17])
    expected = token_loss._loss_of_chunk(states, weight, targets, torch.tensor(4), 61, F.linear)
    padded = token_loss._padded(weight, 128)
    assert padded.shape == (128, 8)
    compiled = torch.compile(token_loss._loss_of_chunk, backend="aot_eager", fullgraph=True)
    for function in (token_loss._loss_of_chunk, compiled):
        total, of_states, of_logits = function(states, padded, targets, torch.tensor(4), 61, F.linear)
        torch.testing.assert_close(total, expected[0])
        torch.testing.assert_close(of_states, expected[1])
        torch.testing.assert_close(of_logits[:, :61], expected[2])
        assert not of_logits[:, 61:].any()


def test_the_chunked_loss_is_the_same_with_onednn(small_chunks):
    torch.manual_seed(0)
    model, ids = MODELS["llm_lab"]().train(), tokens(2, 12)
    labels = labels_of(ids)
    loss, gradients = loss_and_gradients(model, ids, labels, chunked=False)
    model.lm_head.__class__ = OneDnnLinear
    got, found = loss_and_gradients(model, ids, labels, chunked=True)
    torch.testing.assert_close(got, loss, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_chunked_evaluation_has_the_same_nats(monkeypatch):
    torch.manual_seed(0)
    model = MODELS["llm_lab"]().eval()
    text = [np.random.default_rng(0).integers(0, 61, size=200).astype(np.uint16)]
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 1e-3)):
        arguments = {"max_length": 16, "rows": 4, "device": "cpu", "dtype": dtype}
        with monkeypatch.context() as patch:
            plain = total_loss(model, text, separator=7, **arguments)
            patch.setattr(token_loss, "PIECE_OF_LOGITS_BYTES", 4 * 61 * 7)
            pieces = total_loss(model, text, separator=7, **arguments)
        assert plain.tokens == pieces.tokens == 199
        assert pieces.nats == pytest.approx(plain.nats, rel=tolerance)
        assert pieces.text_nats == pytest.approx(plain.text_nats, rel=tolerance)
        assert plain.text_nats < plain.nats - 1


def test_the_head_is_restored_even_if_a_step_fails(small_chunks):
    model = MODELS["llm_lab tied"]()
    head = model.lm_head
    with pytest.raises(KeyboardInterrupt), detach_large_head(model, 24):
        raise KeyboardInterrupt
    assert model.lm_head is head
    assert head.weight is model.model.embed_tokens.weight


def test_small_batches_and_unknown_heads_use_the_plain_loss(small_chunks):
    capped = Gemma2Config(**LLAMA_LIKE, final_logit_softcapping=5.0)
    scaled = CohereConfig(**SMALL, num_key_value_heads=1, eos_token_id=1, logit_scale=0.1)
    for model, count in [
        (MODELS["llm_lab"](), 7),
        (AutoModel.from_config(capped), 24),
        (AutoModel.from_config(scaled), 24),
    ]:
        with detach_large_head(model, count) as head:
            assert head is None
            assert model(tokens(1, 3)).logits.shape[-1] == 61


def test_sampled_labels_follow_the_models_own_distribution(small_chunks):
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 61, bias=False)
    hidden = torch.randn(1, 4).expand(20_000, 4)
    shares = torch.bincount(sample_labels(hidden, head), minlength=61) / 20_000
    torch.testing.assert_close(shares, head(hidden[0]).softmax(-1).detach(), atol=0.01, rtol=0)


def largest_memory(step) -> int:
    """Return the peak bytes of tensors during a step."""
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    standing = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            standing += event.nbytes()
            most = max(most, standing)
    return most


def test_the_chunked_loss_needs_a_fraction_of_the_memory(monkeypatch):
    head, labels = torch.nn.Linear(16, 4096, bias=False), torch.randint(0, 4096, (1024,))
    hidden = torch.randn(1024, 16, requires_grad=True)
    monkeypatch.setattr(token_loss, "PIECE_OF_LOGITS_BYTES", 4 * 4096 * 64)
    plain = largest_memory(lambda: F.cross_entropy(head(hidden), labels).backward())
    pieces = largest_memory(lambda: linear_cross_entropy(hidden, head, labels).backward())
    assert plain > 2 * 1024 * 4096 * 4
    assert pieces < plain / 5


@pytest.mark.parametrize("kind", ["llm_lab", "llm_lab tied"])
def test_data_parallel_training_reduces_every_gradient(kind, small_chunks, tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    model, ids = MODELS[kind]().train(), tokens(2, 12)
    labels = labels_of(ids)
    loss, gradients = loss_and_gradients(model, ids, labels, chunked=False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped, seen = DistributedDataParallel(model), []
        wrapped.register_comm_hook(seen, count_and_halve)
        for _ in range(2):  # a second forward fails if a gradient of the first was not reduced
            model.zero_grad()
            with detach_large_head(model, ids.numel()) as head:
                got = next_token_loss(wrapped, ids, labels, "cpu", "float32", head)
            (got * 0.25).backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(got.detach(), loss, rtol=1e-6, atol=1e-6)
    assert sum(seen) == 2 * sum(parameter.numel() for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name] / 2, rtol=1e-4, atol=1e-6, msg=name)


def count_and_halve(seen: list[int], bucket) -> torch.futures.Future[torch.Tensor]:
    seen.append(bucket.buffer().numel())
    done = torch.futures.Future()
    done.set_result(bucket.buffer() / 2)
    return done
