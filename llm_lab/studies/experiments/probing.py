"""What the residual stream carries, layer by layer: linear probes on facts about a story, with a control.

A small model is pretrained on short stories in which somebody counts things: "Tom has 5 apples. First he finds 3 more.
Then he loses 2. So 5 + 3 = 8. 8 - 2 =". A probe is a linear classifier that reads a fact (who counts, what is counted,
the number at the start, the answer) from the residual stream: the vector that the model has at one token, after one
layer. Every fact is probed at two tokens: the end of the story (before "So"), and the last "=", where the model needs
the answer.

What to expect, with the default options: the embedding of a token says nothing about a story. At the end of the story
the person can be read, the thing and the answer can't. At the last "=", the answer can be read from the first layer on;
little else can be read there. An untrained model of the same shape carries more: its attention takes the mean of all
tokens, so a probe finds almost every word. What training adds is the answer, which has to be computed; other facts are
lost where the next tokens do not need them.

What it teaches: what a probe is and how to doubt it. Three controls are printed with every figure: the most common
label, the same probe on an untrained model with the same shape, and random labels that a probe could only memorize. A
probe shows that something can be read, not that the model uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from llm_lab.estimate.formatting import percent
from llm_lab.runs.plots import Line, draw_heatmap, draw_lines

if TYPE_CHECKING:
    import torch

    from llm_lab.studies.counted_stories import CountedStory
    from llm_lab.studies.study import Study

APP_NAME = "Probing: what each layer carries"
TAKES = "about 3 minutes on two cores"
STORY, RESULT = "the end of the story", "the last “=”"
BATCH = 64


class Options(BaseModel):
    """The model to examine, and how many stories to use."""

    model: str | None = Field(None, description="the model to look into; without one, a small model is pretrained")
    steps: int = Field(1500, ge=10, le=100_000, description="pretraining steps of the small model")
    hidden_size: int = Field(64, ge=32, le=512, description="width of the small model")
    layers: int = Field(4, ge=1, le=12, description="layers of the small model")
    train_stories: int = Field(2000, ge=100, le=2000, description="stories that the probes are fitted on")
    test_stories: int = Field(1000, ge=50, le=1000, description="other stories, with other problems, to measure on")
    seed: int = Field(1337, ge=0, description="random seed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the small model is trained")


@dataclass(frozen=True)
class Reading:
    """How well one fact can be read at one token, after each layer (0: the embedding): accuracies on test stories."""

    point: str
    fact: str
    trained: list[float]
    untrained: list[float]
    control: list[float]
    most_common: float

    @property
    def selectivity(self) -> list[float]:
        """Accuracy minus that of the control task."""
        return [real - control for real, control in zip(self.trained, self.control, strict=True)]


def run(options: Options, study: Study) -> None:
    """Pretrain if no model is named, fit all probes, and report them."""
    import torch

    from llm_lab.hf.load import build_from_config, load_model
    from llm_lab.hf.tokenizers import load_tokenizer
    from llm_lab.runs.folder import find_checkpoint
    from llm_lab.studies.counted_stories import counted_stories

    name = options.model or str(study.train(_recipe(options), "model").path)
    folder = find_checkpoint(name)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    train = list(counted_stories("train"))[: options.train_stories]
    test = list(counted_stories("test"))[: options.test_stories]
    torch.manual_seed(options.seed)
    untrained = build_from_config(model.config).to(model.device).eval()
    study.say("reading the vectors of the model and of an untrained one")
    states = [_vectors(each, tokenizer, stories) for each in (model, untrained) for stories in (train, test)]
    right = _share_right(model, tokenizer, test)
    readings = _probe_all(states, train, test, study, options.seed)
    _report(study, readings, right)


def _recipe(options: Options) -> dict[str, Any]:
    return {
        "stage": "pretrain",
        "seed": options.seed,
        "device": options.device,
        "model": {
            "hidden_size": options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        },
        "tokenizer": {"bpe": 512},
        "data": [{"path": "builtin:sums"}],
        "validation": {"fraction": 0.02},
        "optimizer": {"name": "muon", "learning_rate": 0.02},
        "scheduler": {"name": "linear", "warmup_steps": min(20, options.steps // 4), "min_ratio": 0.0},
        "train": {
            "max_steps": options.steps,
            "max_length": 128,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "eval_steps": options.steps,
            "save_steps": options.steps,
            "logging_steps": max(1, options.steps // 50),
            "save_total_limit": 1,
        },
        "samples": {"prompts": [""], "max_new_tokens": 40},
    }


def _vectors(model: Any, tokenizer: Any, stories: Sequence[CountedStory]) -> dict[str, list[torch.Tensor]]:
    """Return the residual stream at both points: for each point and layer, (stories, size)."""
    import torch

    found: dict[str, list[list[torch.Tensor]]] = {STORY: [], RESULT: []}
    for begin in range(0, len(stories), BATCH):
        chunk = stories[begin : begin + BATCH]
        ids, story_ends, ends = _encoded(tokenizer, chunk)
        with torch.no_grad():
            states = model(ids.to(model.device), output_hidden_states=True, use_cache=False).hidden_states
        rows = torch.arange(len(chunk))
        for point, places in ((STORY, story_ends), (RESULT, ends)):
            found[point].append([layer[rows, places].float().cpu() for layer in states])
    return {point: [torch.cat(layer) for layer in zip(*parts, strict=True)] for point, parts in found.items()}


def _encoded(tokenizer: Any, stories: Sequence[CountedStory]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, and the positions of the last token of each story and of each text.

    Shorter rows are padded at the end, where causal attention can't see it. The story and the steps are encoded
    separately, so that no token belongs to both.
    """
    import torch

    first = [tokenizer(one.story)["input_ids"] for one in stories]
    second = [tokenizer(f"\n{one.steps}", add_special_tokens=False)["input_ids"] for one in stories]
    rows = [before + after for before, after in zip(first, second, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in first]), torch.tensor([len(row) - 1 for row in rows])


def _share_right(model: Any, tokenizer: Any, stories: Sequence[CountedStory]) -> float:
    """Return how often the model's most likely token after the last = begins the correct answer."""
    import torch

    right = 0
    for begin in range(0, len(stories), BATCH):
        chunk = stories[begin : begin + BATCH]
        ids, _, ends = _encoded(tokenizer, chunk)
        with torch.no_grad():
            logits = model(ids.to(model.device), use_cache=False).logits
        best = logits[torch.arange(len(chunk)), ends].argmax(-1).tolist()
        wanted = [tokenizer(f" {one.labels['answer']}", add_special_tokens=False)["input_ids"][0] for one in chunk]
        right += sum(token == other for token, other in zip(best, wanted, strict=True))
    return right / len(stories)


def _probe_all(
    states: Sequence[dict[str, list[torch.Tensor]]],
    train: Sequence[CountedStory],
    test: Sequence[CountedStory],
    study: Study,
    seed: int,
) -> list[Reading]:
    """Fit a probe for each point, fact and layer; on the model, on the untrained one, and on control labels."""
    import torch

    from llm_lab.studies.counted_stories import LABELS
    from llm_lab.studies.probes import control_labels, fit_probe, most_common_share

    kinds = [one.kind for one in (*train, *test)]
    readings = []
    for point in (STORY, RESULT):
        study.say(f"fitting probes at {point}")
        for fact in LABELS:
            real = [one.labels[fact] for one in (*train, *test)]
            found = []
            for labels, (before, after) in (
                (real, (states[0], states[1])),
                (real, (states[2], states[3])),
                (control_labels(kinds, real, seed), (states[0], states[1])),
            ):
                fitted, measured = torch.tensor(labels[: len(train)]), torch.tensor(labels[len(train) :])
                found.append(
                    [
                        fit_probe(vectors, fitted).accuracy(others, measured)
                        for vectors, others in zip(before[point], after[point], strict=True)
                    ]
                )
            common = most_common_share(real[: len(train)], real[len(train) :])
            readings.append(Reading(point, fact, found[0], found[1], found[2], common))
    return readings


def _report(study: Study, readings: Sequence[Reading], right: float) -> None:
    from llm_lab.studies.counted_stories import LABELS

    depth = len(readings[0].trained)
    names = ["embedding", *(f"layer {layer}" for layer in range(depth - 1))]
    study.heading("What is probed")
    study.table("facts", ("fact", "what it is"), list(LABELS.items()), "The facts that the probes look for.")
    study.text(
        "The probes are linear classifiers in closed form, fitted on some stories and measured on others that share no "
        "problem with them. The last layer is measured after the final norm. "
        f"At the last “=”, the model itself continues with the right number in {percent(right, 0)} of the test stories."
    )
    study.result("model_right", right)
    for point, name in ((STORY, "story"), (RESULT, "result")):
        here = [one for one in readings if one.point == point]
        study.heading(f"At {point}")
        study.picture(
            f"accuracy-{name}",
            draw_lines(
                [Line(one.fact, list(enumerate(one.trained))) for one in here],
                title=f"Read at {point}",
                x="layers passed (0: embedding)",
                y="accuracy on other stories",
            ),
            _describe(here, names),
        )
        study.picture(
            f"selectivity-{name}",
            draw_heatmap(
                [one.selectivity for one in here],
                rows=[one.fact for one in here],
                columns=names,
                title=f"Selectivity at {point}",
                diverging=True,
            ),
            "Accuracy minus that on random labels, one for each combination of person and thing. Near 0: what is found "
            "is no more than a probe can memorize.",
        )
        study.picture(
            f"learned-{name}",
            draw_heatmap(
                [[a - b for a, b in zip(one.trained, one.untrained, strict=True)] for one in here],
                rows=[one.fact for one in here],
                columns=names,
                title=f"What training added or dropped at {point}",
                diverging=True,
            ),
            "Accuracy minus that on an untrained model of the same shape, whose attention takes the mean of all "
            "tokens: a probe finds almost every word there. Above 0: what training computed; below 0: dropped.",
        )
        for one in here:
            study.result(f"{name}_{one.fact.replace(' ', '_')}_best", max(one.trained))
    answer = next(one for one in readings if one.point == RESULT and one.fact == "answer")
    study.picture(
        "answer",
        draw_lines(
            [
                Line("trained", list(enumerate(answer.trained))),
                Line("untrained", list(enumerate(answer.untrained))),
                Line("random labels", list(enumerate(answer.control))),
                Line("most common", [(layer, answer.most_common) for layer in range(depth)], dashed=True),
            ],
            title="The answer at the last “=”, with its controls",
            x="layers passed (0: embedding)",
            y="accuracy on other stories",
        ),
        "Where the answer can be read, and what the three controls reach.",
    )
    study.table(
        "probes",
        ("token", "fact", "layer", "trained", "untrained", "random labels", "selectivity", "most common"),
        [
            (
                one.point,
                one.fact,
                names[layer],
                one.trained[layer],
                one.untrained[layer],
                one.control[layer],
                one.selectivity[layer],
                one.most_common,
            )
            for one in readings
            for layer in range(depth)
        ],
        "All probes: accuracy on the test stories.",
    )
    study.heading("Doubts")
    study.text(
        "A probe reads what is there, used or not: only a change to the model shows what it uses. A linear probe "
        "misses what is stored in another form. Random labels by person and thing are one control among many; with "
        "others the selectivity differs. Some facts follow from others (the last change and the start narrow the "
        "answer down), so an accuracy above the most common label does not mean that the fact itself is represented. "
        "One model and one seed."
    )


def _describe(here: Sequence[Reading], names: Sequence[str]) -> str:
    """Describe in a sentence what the curves of one point show."""
    best = [(one.fact, max(one.trained), one.trained.index(max(one.trained)), one.most_common) for one in here]
    found = "; ".join(
        f"{fact} {percent(value, 0)} ({names[at]}; most common {percent(common, 0)})"
        for fact, value, at, common in best
    )
    return f"Accuracy of the probes by layer. The best of each fact: {found}."
