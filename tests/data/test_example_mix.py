"""Training and validation share no prompt, and examples are read in an order that can be resumed anywhere."""

import json
from pathlib import Path

import pytest

from llm_lab.data.examples import open_examples
from llm_lab.data.mixing import build_example_mix
from llm_lab.data.split import split_examples
from llm_lab.errors import UserError

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def make_set(prompts, *, name="rows", kind="conversation", key="data.0"):
    rows = [{"prompt": prompt, "completion": f"answer {i}"} for i, prompt in enumerate(prompts)]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_examples(f"{name}.jsonl", kind=kind, key=key)


def prompts(examples):
    return [example.prompt[0]["content"] for example in examples]


@pytest.mark.parametrize("take", ["end", "random"])
@pytest.mark.parametrize("kind", ["conversation", "prompt"])
def test_no_prompt_is_on_both_sides_even_across_datasets(take, kind):
    one = make_set([f"{i % 170}?" for i in range(200)], name="one", kind=kind)
    two = make_set([f"{i + 50}? " for i in range(150)], name="two", kind=kind)
    splits = split_examples([one, two], fraction=0.3, take=take)
    train = {prompt.strip() for split in splits for prompt in prompts(split.train)}
    validation = {prompt.strip() for split in splits for prompt in prompts(split.validation)}
    assert train
    assert not train & validation
    for source, split in zip((one, two), splits, strict=True):
        assert len(split.train) + len(split.validation) + split.duplicates == len(source.examples)


def test_take_end_holds_out_the_last_examples_in_order():
    (split,) = split_examples([make_set([f"{i}?" for i in range(20)])], fraction=0.1, take="end")
    assert prompts(split.train) == [f"{i}?" for i in range(18)]
    assert prompts(split.validation) == ["18?", "19?"]


def test_take_random_keeps_examples_on_their_side_when_others_are_added():
    few = make_set([f"{i}?" for i in range(100)])
    many = make_set([f"{i}?" for i in reversed(range(400))])
    kept = [set(prompts(split_examples([s], fraction=0.2, take="random")[0].validation)) for s in (few, many)]
    assert kept[0] == kept[1] & set(prompts(few.examples))
    assert 10 < len(kept[0]) < 30


def test_conversations_with_the_same_first_prompt_are_on_the_same_side():
    def conversation(*texts):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"messages": turns}

    rows = [*(conversation(f"{i}?", "yes") for i in range(9)), conversation("3?", "yes", "and?", "no")]
    Path("conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_examples("conversations.jsonl", kind="conversation")
    with pytest.raises(UserError, match="is left for validation: 1 have prompts that are also in training"):
        split_examples([source], fraction=0.1, take="end")


def test_fraction_0_holds_out_nothing():
    (split,) = split_examples([make_set(["a", "b"])], fraction=0.0, take="end")
    assert len(split.train) == 2
    assert not split.validation


@pytest.mark.parametrize(
    ("texts", "take", "why"), [(["a"], "end", "left for training"), (["a", "a"], "random", "left for validation")]
)
def test_an_empty_side_is_an_error(texts, take, why):
    with pytest.raises(UserError, match=why):
        split_examples([make_set(texts)], fraction=0.01, take=take)


def test_a_dataset_of_one_example_says_which_side_it_is_on():
    with pytest.raises(UserError, match=r"the only example in .* is used for training, so none is left for validation"):
        split_examples([make_set(["a"])], fraction=0.1, take="random")
    with pytest.raises(UserError, match=r"the only example in .* is held out for validation, so none is left for trai"):
        split_examples([make_set(["a"])], fraction=0.1, take="end")


@pytest.mark.parametrize("count", [2, 5, 12])
def test_of_a_few_examples_random_holds_out_one(count):
    few = [f"{i}?" for i in range(count)]
    (split,) = split_examples([make_set(few)], fraction=1e-6, take="random")
    (again,) = split_examples([make_set(few[::-1])], fraction=1e-6, take="random")
    assert prompts(split.validation) == prompts(again.validation)
    assert len(split.validation) == 1
    assert len(split.train) == count - 1


def test_a_prompt_that_a_small_dataset_holds_out_is_not_trained_on_in_another():
    (lowest,) = prompts(split_examples([make_set(["a", "b"])], fraction=1e-6, take="random")[0].validation)
    sets = [make_set(["a", "b"]), make_set([lowest, *(f"{i}?" for i in range(30))])]
    splits = split_examples(sets, fraction=1e-6, take="random")
    assert lowest not in [prompt for split in splits for prompt in prompts(split.train)]
    assert all(split.validation for split in splits)


def test_validation_may_be_empty_if_it_is_not_required():
    (split,) = split_examples([make_set(["a", "a"])], fraction=0.01, take="random", require_validation=False)
    assert len(split.train) == 2


def test_an_unknown_way_to_split_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean random"):
        split_examples([make_set(["a"])], fraction=0.5, take="randon")


def make_mix(sizes=(30, 7), weights=(2.0, 1.0), samples=120, seed=5):
    sets = [make_set([f"{n}:{i}" for i in range(size)], name=str(n)).examples for n, size in enumerate(sizes)]
    return build_example_mix(sets, weights, num_samples=samples, seed=seed)


def test_every_prefix_has_each_dataset_in_its_share():
    mix = make_mix()
    sources = [mix.locate(i)[0] for i in range(len(mix))]
    for length in range(1, len(mix) + 1):
        for source, share in ((0, 2 / 3), (1, 1 / 3)):
            assert abs(sources[:length].count(source) - share * length) < 1
        assert mix.counts(length) == [sources[:length].count(0), sources[:length].count(1)]
    assert mix.epochs() == [80 / 30, 40 / 7]


def test_every_epoch_reads_every_example_once_in_a_new_order():
    mix = make_mix()
    read = [mix.locate(i)[1] for i in range(len(mix)) if mix.locate(i)[0] == 1]
    epochs = [read[start : start + 7] for start in range(0, 35, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_a_sample_does_not_depend_on_what_was_read_before():
    order = [make_mix()[i] for i in range(120)]
    again = make_mix()
    assert [again[i] for i in reversed(range(120))] == order[::-1]
    assert list(make_mix(samples=50)) == order[:50]  # a longer run starts like a shorter one
    assert list(make_mix(seed=6)) != order


def test_reading_past_the_last_sample_is_an_index_error():
    with pytest.raises(IndexError):
        make_mix(samples=3)[3]
