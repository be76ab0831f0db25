"""Answer held-out prompts and score the answers (exact match, reward, BLEU, ROUGE); generate sample answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from llm_lab.data.examples import Example, open_examples
from llm_lab.data.paths import default_split
from llm_lab.errors import Problem, UserError
from llm_lab.events import Listener, RunWarning, progress_of
from llm_lab.hf.conversations import encode_prompt
from llm_lab.hf.load import context_of
from llm_lab.hf.rendering import Refused
from llm_lab.recipe.scoring import Score
from llm_lab.rewards.build import build_rewards
from llm_lab.training.loop import find_local
from llm_lab.training.loss import autocast

EXACT = ("exact_number", "exact_match")  # rewards that are 1 for a correct answer and 0 for a wrong one
ROUGE = ("rouge1", "rouge2", "rougeL")
ROWS = 64
SHOWN = 3
Measure = Callable[[int], dict[str, float] | None]


class Scorer:
    """Answers the same prompts at every evaluation and scores the answers; keeps the run's random state unchanged.

    held_out: the stage's own prompts, used if the recipe names none. Prompts that leave no room for an answer in the
    context are skipped with a warning. Raises UserError if no prompt is left.
    """

    @classmethod
    def of(
        cls,
        recipe: Any,
        held_out: Sequence[Example],
        tokenizer: Any,
        model: Any,
        *,
        device: str,
        dtype: str,
        listener: Listener,
    ) -> Scorer | None:
        """Return the scorer for a recipe's `score`, or None if the recipe has none."""
        if recipe.score is None:
            return None
        settings = {"device": device, "dtype": dtype, "seed": recipe.seed, "listener": listener}
        return cls(recipe.score, held_out, tokenizer, context=context_of(model), **settings)

    def __init__(
        self,
        score: Score,
        held_out: Sequence[Example],
        tokenizer: Any,
        *,
        context: int | None,
        device: str,
        dtype: str,
        seed: int,
        listener: Listener,
    ):
        self.device, self.dtype, self.seed, self.listener = device, dtype, seed, listener
        assert score.max_completion_length is not None  # set by resolve
        assert score.rewards is not None  # set by resolve
        self.tokenizer, self.new_tokens = tokenizer, score.max_completion_length
        self.fingerprint: str | None = None  # of the prompts that the recipe names
        if score.path is not None:
            columns = score.columns.model_dump(exclude_none=True) if score.columns else None
            source = open_examples(
                score.path,
                kind="prompt",
                columns=columns,
                key="score",
                subset=score.subset,
                split=default_split(score.path, score.split),
            )
            held_out, self.fingerprint = source.examples, source.fingerprint
        room = None if context is None else context - self.new_tokens
        asked = held_out[: score.prompts]
        wanted = encode_prompts(tokenizer, asked, "score", listener)
        kept = [(example, ids) for example, ids in wanted if room is None or len(ids) <= room]
        if len(kept) < len(wanted):
            skipped = len(wanted) - len(kept)
            listener(RunWarning(f"score: {skipped:,} prompts skipped, since they leave no room for an output"))
        if not kept:
            why = "every prompt is too long to leave room for an output" if wanted else "there are no prompts to score"
            why = why if wanted or not asked else "the chat template accepts none of the prompts"
            fix = "Set score.path to other prompts, or score: null."
            if wanted:
                fix = f"Set a score.max_completion_length below {self.new_tokens}, or score.path to shorter prompts."
            raise UserError(Problem("score", why, fix=fix))
        self.examples, self.ids = [example for example, _ in kept], [ids for _, ids in kept]
        terms = [term.model_dump() for term in score.rewards]
        self.rewards = build_rewards(terms, device=device, find_model=find_local, key="score.rewards")
        self.columns = columns_of(self.examples)
        self.rewards.check_columns(self.columns)
        self.exact = next((name for name in EXACT for term in terms if term["name"] == name), None)

    def measure(self, model: Any) -> tuple[dict[str, float], list[str]]:
        """Return the metrics of metrics.jsonl, and the greedy answers."""
        greedy, lengths = self.answer(model, temperature=0.0)
        sampled, _ = self.answer(model, temperature=1.0)
        prompts = [list(example.prompt) for example in self.examples]
        row: dict[str, float] = {}
        for answers, suffix in ((greedy, ""), (sampled, "_sampled")):
            scores = self.rewards(prompts, answers, self.columns)
            means = scores.means()
            if self.exact:
                row[f"exact_match{suffix}"] = round(means[f"rewards/{self.exact}"], 6)
            if "reward" in means:
                row[f"eval_reward{suffix}"] = round(means["reward"], 6)
        row["eval_completion_length"] = round(sum(lengths) / len(lengths), 2)
        return row, greedy

    def answer(self, model: Any, *, temperature: float) -> tuple[list[str], list[int]]:
        """Return the answers and their lengths in tokens."""
        texts, lengths = [""] * len(self.ids), [0] * len(self.ids)
        order = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        report = progress_of(self.listener, "scoring")
        with deterministic(self.device, self.seed), generating(model), autocast(self.device, self.dtype):
            for start in range(0, len(order), ROWS):
                batch = order[start : start + ROWS]
                found = generate(
                    model,
                    self.tokenizer,
                    [self.ids[i] for i in batch],
                    max_new_tokens=self.new_tokens,
                    temperature=temperature,
                )
                for i, ids in zip(batch, found, strict=True):
                    texts[i], lengths[i] = self.tokenizer.decode(ids, skip_special_tokens=True), len(ids)
                if len(order) > ROWS:
                    report(min(start + ROWS, len(order)), len(order))
        return texts, lengths


def prompt_ids(tokenizer: Any, example: Example) -> list[int]:
    """Return a prompt's token ids; without a chat template, those of its plain text."""
    if getattr(tokenizer, "chat_template", None):
        return encode_prompt(tokenizer, example.prompt)
    text = "\n".join(message["content"] for message in example.prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_prompts(
    tokenizer: Any, examples: Sequence[Example], key: str, listener: Listener
) -> list[tuple[Example, list[int]]]:
    """Return the prompts with their token ids; warns about those that the chat template does not accept."""
    found: list[tuple[Example, list[int]]] = []
    refused: Counter[str] = Counter()
    for example in examples:
        try:
            found.append((example, prompt_ids(tokenizer, example)))
        except Refused as error:
            refused[error.reason] += 1
    for reason, count in refused.items():
        listener(RunWarning(f"{key}: {count:,} of {len(examples):,} prompts left out: {reason}"))
    return found


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return the columns that rewards compare with: the reference answers, if any, and the data's other columns."""
    names = list(dict.fromkeys(name for example in examples for name in example.columns))
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    answers = [example.answer if example.answer is not None else example.completion for example in examples]
    return columns | ({"answer": answers} if any(answer is not None for answer in answers) else {})


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    decoding: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Return the token ids of an answer to each prompt, including the end token.

    decoding: more settings of transformers' generate, such as num_beams.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    with own_sampling_off(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            **(sampling or {"do_sample": False}),
            **(decoding or {}),
        )
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end]) - {None}
    answers = []
    for row in output[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        answers.append(row[: stop + 1])
    return answers


@contextmanager
def own_sampling_off(model: Any) -> Iterator[None]:
    """Let `generate` ignore the model's own generation config, except for its end tokens.

    Penalties, filters or suppressed tokens in it would change the distribution of scored outputs and rollouts.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
    try:
        yield
    finally:
        base.generation_config = own


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Put a model into eval mode without cuDNN attention, which makes a plan for each new length; then restore both."""
    before, cudnn = model.training, torch.backends.cuda.cudnn_sdp_enabled()
    model.eval()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        model.train(before)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


@contextmanager
def deterministic(device: str, seed: int) -> Iterator[None]:
    """Use a separate, seeded random state."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def text_scores(wanted: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return bleu (sacrebleu, 0 to 100, over all answers) and rouge1, rouge2, rougeL (0 to 1, mean F1)."""
    scores: dict[str, float] = {}
    if "bleu" in wanted:
        from sacrebleu import corpus_bleu

        scores["bleu"] = corpus_bleu(list(answers), [list(references)]).score
    if "rouge" in wanted:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE))
        rows = [scorer.score(reference, answer) for reference, answer in zip(references, answers, strict=True)]
        scores |= {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE}
    return scores
