"""Optimizers and schedules equal their references, and each parameter gets the right optimizer."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import tiny_config, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.optim.decay import fade_decay
from llm_lab.optim.factory import build_optimizer, split_parameters
from llm_lab.optim.muon import COEFFICIENTS, MuonWithAdamW
from llm_lab.optim.schedule import decay_factor_of, learning_rate_factor
from llm_lab.recipe.optimizers import Adafactor, AdamW, AdamW8bit, Lion, Muon, Sophia
from llm_lab.recipe.train_loop import SCHEDULERS

OPTIONS = [AdamW(), Muon(), Lion(), Sophia(), Adafactor(weight_decay=0.1), Adafactor(beta1=0.9)]
CAUTIOUS = [kind(cautious_weight_decay=True, weight_decay=0.3) for kind in (AdamW, Muon, Lion, Sophia)]
SHAPES = [(8, 8), (16, 4), (4, 16), (8, 8), (1, 6)]


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=61, n_positions=32))


def mixture(kind: str):
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = AutoConfig.for_model(kind, **sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=3)
    config.head_dim = 8
    return AutoModelForCausalLM.from_config(config)


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 - 2)


def newton_schulz(update: torch.Tensor, steps: int) -> torch.Tensor:
    """The published iteration for one matrix, transposed if it is tall."""
    a, b, c = COEFFICIENTS
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / x.norm()
    for _ in range(steps):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x.T if update.shape[0] > update.shape[1] else x


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_muon_step_equals_the_published_algorithm(nesterov, monkeypatch):
    monkeypatch.setattr("llm_lab.optim.muon._multiplies_bf16", lambda device_type: False)
    mine, lr, decay, momentum = matrices(), 0.02, 0.1, 0.9
    other = [parameter.detach().clone() for parameter in mine]
    buffers = [torch.zeros_like(parameter) for parameter in other]
    options = {"lr": lr, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov, "ns_steps": 5}
    optimizer = MuonWithAdamW([{"params": mine, "algorithm": "muon", **options}])
    for step in range(6):
        give_gradients(mine, step)
        grads = [parameter.grad.clone() for parameter in mine]
        optimizer.step()
        for parameter, grad, buffer in zip(other, grads, buffers, strict=True):
            buffer.mul_(momentum).add_(grad, alpha=1 - momentum)
            update = (1 - momentum) * grad + momentum * buffer if nesterov else buffer
            scale = math.sqrt(max(1.0, parameter.shape[0] / parameter.shape[1]))
            parameter.mul_(1 - lr * decay).sub_(lr * scale * newton_schulz(update, 5))
        for parameter, expected, grad in zip(mine, other, grads, strict=True):
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(parameter.grad, grad), "a step must not change the gradients"


@pytest.mark.parametrize("in_bf16", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torchs_within_bf16_precision(nesterov, in_bf16, monkeypatch):
    monkeypatch.setattr("llm_lab.optim.muon._multiplies_bf16", lambda device_type: in_bf16)
    mine, theirs = matrices(), matrices()
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": nesterov, "ns_steps": 5}
    optimizer = MuonWithAdamW([{"params": mine, "algorithm": "muon", **options}])
    reference = torch.optim.Muon(theirs, adjust_lr_fn="original", **options)
    for step in range(5):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for parameter, expected, start in zip(mine, theirs, matrices(), strict=True):
        assert (parameter - expected).norm() < 0.03 * (expected - start).norm()


def test_muon_treats_the_transposed_matrices_of_gpt2_like_any_other():
    model = gpt2()
    stored = model.transformer.h[0].mlp.c_fc.weight  # (inputs, outputs)
    linear = nn.Parameter(stored.detach().T.clone())
    optimizer = build_optimizer(model, Muon(learning_rate=0.1))
    reference = MuonWithAdamW([{"params": [linear], "algorithm": "muon", "lr": 0.1}])
    give_gradients([stored], 0)
    linear.grad = stored.grad.T.clone()
    optimizer.step()
    reference.step()
    torch.testing.assert_close(stored.detach().T, linear.detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_fused_experts_are_matrices_one_per_expert(kind):
    """gpt-oss stores its experts transposed, with biases that look like matrices."""
    model = mixture(kind)
    hidden, _, vectors = split_parameters(model)
    names = {id(parameter): name.partition("layers.0.")[2] for name, parameter in model.named_parameters()}
    matrix_names = {names[id(parameter)] for parameter in hidden}
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "self_attn.q_proj.weight"} <= matrix_names
    assert not [name for name in matrix_names if name.endswith("bias")]
    assert all(parameter.ndim == 1 or names[id(parameter)].endswith("bias") for parameter in vectors)
    fused = model.model.layers[0].mlp.experts.gate_up_proj
    alone = [nn.Parameter(expert.detach().clone()) for expert in fused]
    give_gradients([fused], 0)
    for expert, grad in zip(alone, fused.grad, strict=True):
        expert.grad = grad.clone()
    transposed = [kind == "gpt_oss"] * len(alone)
    reference = MuonWithAdamW([{"params": alone, "transposed": transposed, "algorithm": "muon", "lr": 0.1}])
    build_optimizer(model, Muon(learning_rate=0.1)).step()
    reference.step()
    torch.testing.assert_close(fused.detach(), torch.stack([p.detach() for p in alone]), rtol=0, atol=1e-3)


def test_a_muon_update_is_nearly_orthogonal():
    (matrix,) = [nn.Parameter(torch.zeros(16, 16))]
    optimizer = MuonWithAdamW([{"params": [matrix], "algorithm": "muon", "lr": 1.0}])
    give_gradients([matrix], 0)
    optimizer.step()
    singular = torch.linalg.svdvals(matrix.detach())
    assert singular.min() > 0.3
    assert singular.max() < 1.3


def test_the_adamw_part_equals_torchs_adamw_bitwise():
    shapes = [*SHAPES, (7,), (3, 2, 2)]
    mine, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    options = {"lr": 3e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = MuonWithAdamW([{"params": mine, "algorithm": "adamw", **options}])
    reference = torch.optim.AdamW(theirs, fused=True, **options)
    for step in range(5):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    assert all(torch.equal(parameter, other) for parameter, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("options", [*OPTIONS, CAUTIOUS[0], Muon(normalized=True)], ids=lambda options: options.name)
def test_a_saved_optimizer_resumes_bitwise(options, tmp_path):
    whole = LabForCausalLM(tiny_config())
    first = copy.deepcopy(whole)

    def train(model, optimizer, steps):
        for step in steps:
            give_gradients(model.parameters(), step)
            optimizer.step()

    train(whole, build_optimizer(whole, options), range(6))
    optimizer = build_optimizer(first, options)
    train(first, optimizer, range(3))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    second = LabForCausalLM(tiny_config())
    second.load_state_dict(saved["model"])
    resumed = build_optimizer(second, options)
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(3, 6))
    for parameter, expected in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.name)
def test_a_state_loaded_on_the_cpu_moves_to_the_device_of_the_parameters(options):
    model = LabForCausalLM(tiny_config())
    give_gradients(model.parameters(), 0)
    optimizer = build_optimizer(model, options)
    optimizer.step()
    elsewhere = build_optimizer(LabForCausalLM(tiny_config()).to("meta"), options)
    elsewhere.load_state_dict(optimizer.state_dict())
    states = elsewhere.state.values()
    assert {value.device.type for state in states for value in state.values() if getattr(value, "ndim", 0)} == {"meta"}
    # A fused step on CUDA refuses counts that are on the CPU.
    counts = [state["step"] for state in states if torch.is_tensor(state.get("step"))]
    assert all(count.device.type == "meta" for count in counts)
    assert bool(counts) == (options.name in ("adamw", "muon"))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_normuon_step_equals_the_published_algorithm(transposed, monkeypatch):
    """Algorithm 1 of arXiv:2510.05491, one row at a time, with modded-nanogpt's scale: the norm before normalizing."""
    monkeypatch.setattr("llm_lab.optim.muon._multiplies_bf16", lambda device_type: False)
    lr, momentum, beta = 0.02, 0.9, 0.8
    rows = [parameter.detach().clone() for parameter in matrices()]
    mine = [nn.Parameter(matrix.T.clone() if transposed else matrix.clone()) for matrix in rows]
    buffers, squares = [torch.zeros_like(m) for m in rows], [torch.zeros(len(m)) for m in rows]
    group = {"params": mine, "algorithm": "muon", "lr": lr, "momentum": momentum, "neuron_beta": beta}
    optimizer = MuonWithAdamW([{**group, "transposed": [transposed] * len(mine)}])
    for step in range(4):
        give_gradients(mine, step)
        optimizer.step()
        for matrix, parameter, buffer, square in zip(rows, mine, buffers, squares, strict=True):
            grad = parameter.grad.T if transposed else parameter.grad
            buffer.mul_(momentum).add_(grad, alpha=1 - momentum)
            direction = newton_schulz((1 - momentum) * grad + momentum * buffer, 5)
            scaled = torch.empty_like(direction)
            for row in range(len(matrix)):
                square[row] = beta * square[row] + (1 - beta) * (direction[row] ** 2).mean()
                scaled[row] = direction[row] / (square[row].sqrt() + 1e-8)
            scaled *= direction.norm() / scaled.norm()
            matrix.sub_(lr * math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1])) * scaled)
    for parameter, expected in zip(mine, rows, strict=True):
        torch.testing.assert_close(parameter.T if transposed else parameter, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", CAUTIOUS, ids=lambda options: options.name)
def test_cautious_decay_equals_the_published_rule(options):
    """x <- x - lr * (u + decay * x where u * x >= 0), with u from a twin without decay (arXiv:2510.12402)."""
    model = LabForCausalLM(tiny_config())
    optimizer = build_optimizer(model, options)
    hidden = {id(p) for p in split_parameters(model)[0]}
    spared = decayed = 0
    for step in range(3):
        before = copy.deepcopy(model)
        twin = build_optimizer(before, options.model_copy(update={"cautious_weight_decay": False, "weight_decay": 0.0}))
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            group["weight_decay"] = 0.0
        twin.load_state_dict(state)
        start = [p.detach().clone() for p in model.parameters()]
        give_gradients(model.parameters(), step)
        give_gradients(before.parameters(), step)
        optimizer.step()
        twin.step()
        for x, parameter, plain in zip(start, model.parameters(), before.parameters(), strict=True):
            expected = plain.detach().clone()
            if id(parameter) in hidden:
                update = (x - plain) / options.learning_rate
                allowed = (update * x >= 0).float()
                spared, decayed = spared + int((allowed == 0).sum()), decayed + int(allowed.sum())
                expected -= options.learning_rate * 0.3 * allowed * x
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)
    assert min(spared, decayed) > 1000


@pytest.mark.parametrize("cautious", [False, True])
def test_a_decreasing_weight_decay_is_a_share_of_the_full_one_also_after_a_resume(cautious):
    options, shares = AdamW(weight_decay=0.4, cautious_weight_decay=cautious), iter([1.0, 0.5, 0.25])
    model = LabForCausalLM(tiny_config())
    key = "cautious_decay" if cautious else "weight_decay"

    def one_step(optimizer):
        give_gradients(model.parameters(), 0)
        optimizer.step()
        return [group[key] for group in optimizer.param_groups]

    first = build_optimizer(model, options)
    fade_decay(first, lambda: next(shares))
    assert one_step(first) == [0.4, 0.0]
    assert one_step(first) == [0.2, 0.0]
    resumed = build_optimizer(model, options)
    fade_decay(resumed, lambda: next(shares))
    resumed.load_state_dict(first.state_dict())
    assert one_step(resumed) == [0.1, 0.0]


def test_the_decay_falls_to_zero_in_a_straight_line():
    factor = decay_factor_of({"weight_decay": "linear"}, 4)
    assert [factor(update) for update in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert decay_factor_of({"weight_decay": "constant"}, 4) is None


MODELS = {
    "tied": lambda: LabForCausalLM(tiny_config(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "untied": lambda: LabForCausalLM(tiny_config(tie_word_embeddings=False, norm="layernorm", qk_norm=True)),
    "gpt2": gpt2,
    "extras": lambda: LabForCausalLM(tiny_config("learned", residual_scalars=True, value_embeddings=True)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_and_head_are_not_hidden_matrices(kind):
    model = MODELS[kind]()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden, embeddings, vectors = ([names[id(p)] for p in part] for part in split_parameters(model))
    assert len(hidden) + len(embeddings) + len(vectors) == len(names)
    expected = {
        "tied": {"model.embed_tokens.weight"},
        "untied": {"model.embed_tokens.weight", "lm_head.weight"},
        "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
        "extras": {
            "model.embed_tokens.weight",
            "model.positions.weight",
            "model.value_embeddings.1.weight",
            "lm_head.weight",
        },
    }
    assert set(embeddings) == expected[kind]
    assert all(".layers." in name or ".h." in name for name in hidden)
    assert all("norm" in name or "ln_" in name or name.endswith(("bias", "scalars")) for name in vectors)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.name)
def test_every_trainable_parameter_is_updated_and_only_matrices_decay(kind, options):
    model = MODELS[kind]()
    frozen = next(iter(model.parameters())) if kind == "untied" else None
    if frozen is not None:
        frozen.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, options)
    for step in range(2):
        give_gradients([p for p in model.parameters() if p.requires_grad], step)
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter is frozen), name
    hidden, *others = split_parameters(model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in hidden} == {options.weight_decay}
    assert {decay[id(p)] for part in others for p in part} == {0.0}


def test_the_values_of_a_recipe_reach_the_optimizer():
    model = LabForCausalLM(tiny_config())
    values = {"learning_rate": 0.5, "betas": (0.1, 0.2), "eps": 0.3, "weight_decay": 0.4}
    for group in build_optimizer(model, AdamW(**values)).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.1, 0.2), 0.3)
    values = {"learning_rate": 0.5, "momentum": 0.6, "nesterov": False, "ns_steps": 3, "weight_decay": 0.7}
    values |= {"adamw_learning_rate": 0.1, "adamw_betas": (0.2, 0.3), "adamw_eps": 0.4}
    muon, adamw = build_optimizer(model, Muon(**values)).param_groups
    assert [muon[key] for key in ("algorithm", "lr", "momentum", "nesterov", "ns_steps", "weight_decay")] == [
        "muon", 0.5, 0.6, False, 3, 0.7,
    ]  # fmt: skip
    assert [adamw[key] for key in ("algorithm", "lr", "betas", "eps")] == ["adamw", 0.1, (0.2, 0.3), 0.4]


@given(
    name=st.sampled_from(list(SCHEDULERS)),
    max_steps=st.integers(1, 400),
    warmup_share=st.floats(0.0, 1.0),
    min_ratio=st.floats(0.0, 1.0),
)
def test_the_learning_rate_rises_then_falls_to_its_floor_and_stays(name, max_steps, warmup_share, min_ratio):
    warmup = round(warmup_share * (max_steps - 1))
    factors = [
        learning_rate_factor(update, name=name, max_steps=max_steps, warmup_steps=warmup, min_ratio=min_ratio)
        for update in range(2 * max_steps + 5)
    ]
    peak = max(0, warmup - 1)
    assert factors[peak] == 1.0
    assert all(before < after for before, after in itertools.pairwise(factors[: peak + 1]))
    falling = factors[peak:]
    assert all(before >= after - 1e-12 for before, after in itertools.pairwise(falling))
    floor = 1.0 if name == "none" else min_ratio
    # If a run has only one update, it is at the peak.
    last = 1.0 if max_steps == 1 else floor
    assert factors[max_steps - 1] == last
    assert all(factor == floor for factor in factors[max_steps:])
    assert all(floor - 1e-12 <= factor <= 1.0 for factor in falling)


def test_the_schedules_equal_a_hand_calculation():
    def curve(**options):
        return [round(learning_rate_factor(update, max_steps=11, warmup_steps=1, **options), 6) for update in range(11)]

    assert curve(name="polynomial", power=3.0) == [round((1 - update / 10) ** 3, 6) for update in range(11)]
    flat, falling = [1.0] * 7, [0.775, 0.55, 0.325, 0.1]
    assert curve(name="wsd", decay_ratio=0.4, min_ratio=0.1)[1:] == [*flat[1:], *falling]
    assert curve(name="cosine", min_ratio=0.2)[5] == 0.6


def test_a_lion_step_equals_a_hand_calculation():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    weight = model[0].weight
    before = weight.detach().clone()
    options = Lion(learning_rate=0.01, betas=(0.9, 0.99), weight_decay=0.5)
    optimizer = build_optimizer(model, options)
    mean, expected = torch.zeros_like(before), before
    for step in range(3):
        give_gradients([weight], step)
        grad = weight.grad.clone()
        optimizer.step()
        expected = expected * (1 - 0.01 * 0.5) - 0.01 * torch.sign(0.9 * mean + 0.1 * grad)
        mean = 0.99 * mean + 0.01 * grad
    torch.testing.assert_close(weight.detach(), expected)


def test_a_sophia_step_equals_the_published_algorithm():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    weight, options = model[0].weight, Sophia(learning_rate=0.1, betas=(0.9, 0.8), rho=0.05, weight_decay=0.3)
    expected = weight.detach().clone()
    optimizer = build_optimizer(model, options)
    mean = hessian = torch.zeros_like(expected)
    for step in range(6):
        give_gradients([weight], step)
        grad = weight.grad.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * grad
        expected = expected * (1 - 0.1 * 0.3) - 0.1 * torch.clamp(mean / torch.clamp(0.05 * hessian, min=1e-12), -1, 1)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
        if step % 2 == 0:
            give_gradients([weight], step + 50)
            hessian = 0.8 * hessian + 0.2 * 64 * weight.grad**2
            optimizer.update_hessian(64)
    inside = (mean.abs() < (0.05 * hessian).clamp(min=1e-12)).float().mean()
    assert optimizer.unclipped_share() == pytest.approx(inside.item())
    assert 0 < inside < 1


def test_sophias_estimate_is_the_diagonal_of_the_gauss_newton_matrix():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3, bias=False), torch.randn(16, 4)
    optimizer = build_optimizer(model, Sophia(betas=(0.9, 0.5)))
    probabilities = torch.softmax(model(x), -1).detach()
    # For softmax regression: the mean over examples of x_j ** 2 * p_c * (1 - p_c).
    expected = torch.einsum("bj,bc->cj", x**2, probabilities * (1 - probabilities)) / len(x)
    total = torch.zeros_like(expected)
    for _ in range(4000):
        labels = torch.multinomial(probabilities, 1).squeeze(1)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.state.clear()
        optimizer.update_hessian(len(x))
        total += optimizer.state[model.weight]["hessian"] / 0.5
    torch.testing.assert_close(total / 4000, expected, rtol=0.1, atol=0.005)


def test_an_adafactor_step_equals_the_paper_and_keeps_rows_and_columns_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False))
    weight = model[0].weight
    expected = weight.detach().clone()
    optimizer = build_optimizer(model, Adafactor(learning_rate=0.02))
    rows, columns = torch.zeros(4), torch.zeros(5)
    for step in range(1, 5):
        give_gradients([weight], step)
        grad = weight.grad.clone()
        optimizer.step()
        squared, beta = grad**2 + 1e-30, 1 - step**-0.8
        rows = beta * rows + (1 - beta) * squared.mean(1)
        columns = beta * columns + (1 - beta) * squared.mean(0)
        update = grad / torch.sqrt(torch.outer(rows, columns) / rows.mean())
        update = update / max(1.0, update.square().mean().sqrt().item())
        size = max(1e-3, expected.square().mean().sqrt().item())
        expected = expected - 0.02 * size * update
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
    kept = sum(value.numel() for value in optimizer.state[weight].values() if torch.is_tensor(value))
    assert kept <= 4 + 5 + 1


def test_8_bit_adamw_releases_a_model_and_its_exceptions():
    """Otherwise a trial's model would stay in GPU memory, and its exceptions would apply to the next model."""
    import gc
    import weakref

    pytest.importorskip("bitsandbytes")
    from bitsandbytes.optim import GlobalOptimManager

    model = tiny_model()
    optimizer = build_optimizer(model, AdamW8bit())
    embedding = model.get_input_embeddings().weight
    places = [
        (number, place)
        for number, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
        if parameter is embedding
    ]
    manager = GlobalOptimManager.get_instance()
    assert [manager.index2config[place]["optim_bits"] for place in places] == [32]
    kept = weakref.ref(embedding)
    del model, optimizer, embedding
    gc.collect()
    assert kept() is None
