"""Combined reward terms: weights, missing values, the user's own functions, and TRL's interface."""

import math
import textwrap

import pytest

from llm_lab.errors import UserError
from llm_lab.rewards.build import build_rewards, check_files, find_function, load_function

pytestmark = pytest.mark.usefixtures("own_code")
TERMS = [
    {"name": "exact_number", "weight": 1.0, "pattern": None, "length": None, "ngram": None},
    {"name": "regex", "pattern": "<b>.*</b>", "weight": 0.2},
    {"name": "repetition", "weight": 0.5},
]


def write_function(tmp_path, body, name="mine.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(body))
    return path


def test_the_reward_is_the_weighted_sum_of_its_terms():
    rewards = build_rewards(TERMS)
    assert rewards.names == ("exact_number", "regex", "repetition")
    assert rewards.weights == [1.0, 0.2, 0.5]
    scores = rewards(["?", "?"], ["<b>5</b>", "go go go go go"], {"answer": ["5", "6"]})
    assert scores.values == ((1.0, 0.0), (1.0, 0.0), (0.0, pytest.approx(-2 / 3)))
    assert scores.totals == (pytest.approx(1.2), pytest.approx(-1 / 3))
    assert scores.means()["rewards/regex"] == 0.5
    assert scores.means()["reward"] == pytest.approx((1.2 - 1 / 3) / 2)


def test_terms_that_do_not_apply_are_excluded_from_sum_and_means():
    scores = build_rewards(TERMS[:2])(["?"] * 2, ["<b>5</b>", "5"], {"answer": [None, "5"]})
    assert math.isnan(scores.values[0][0])
    assert scores.totals == (0.2, 1.0)
    assert scores.means()["rewards/exact_number"] == 1.0
    alone = build_rewards(TERMS[:1])(["?"] * 2, ["5", "5"], {"answer": [None, "5"]})
    assert math.isnan(alone.totals[0])


def test_terms_of_the_same_name_are_numbered_in_the_log():
    rewards = build_rewards([{"name": "regex", "pattern": "a"}, {"name": "regex", "pattern": "b"}])
    assert rewards.names == ("regex", "regex_2")


def test_a_data_column_does_not_override_a_key_of_the_recipe():
    rewards = build_rewards([{"name": "length", "length": 4}, {"name": "repetition"}])
    columns = {"length": [1], "ngram": [9], "completions": ["x"], "prompts": ["y"]}
    assert rewards(["?"], ["ab"], columns).values == ((0.5,), (0.0,))


def test_completions_may_be_messages():
    scores = build_rewards(TERMS[:1])(
        [[{"role": "user", "content": "2+3?"}]], [[{"role": "assistant", "content": "= 5"}]], {"answer": ["5"]}
    )
    assert scores.totals == (1.0,)


def test_data_that_cannot_be_scored_is_refused_before_the_run():
    rewards = build_rewards([{"name": "exact_number"}, {"name": "exact_match"}])
    with pytest.raises(UserError, match=r"(?s)rewards\.0.*`answer`.*rewards\.1.*the columns are: prompt"):
        rewards.check_columns({"prompt": ["?"]})
    with pytest.raises(UserError, match=r"1 of 2 answers .* row 2 has no number: 'blue'"):
        rewards.check_columns({"answer": ["5", "blue"]})
    with pytest.raises(UserError, match=r"1 of 2 rows have no `answer`"):
        rewards.check_columns({"answer": ["5", None]})
    build_rewards([{"name": "exact_number"}, {"name": "repetition"}]).check_columns({"answer": ["5", None]})


def test_trl_functions_return_the_values_of_the_terms(tmp_path):
    path = write_function(
        tmp_path,
        """
        def seen(completions, prompts, **columns):
            assert set(columns) == {"answer"}, columns
            return [float(len(text)) if text else None for text in completions]
        """,
    )
    rewards = build_rewards([*TERMS, {"python": f"{path}:seen"}])
    functions = rewards.trl_functions()
    assert [function.__name__ for function in functions] == ["exact_number", "regex", "repetition", "seen"]
    prompts = [[{"role": "user", "content": "2+3?"}]] * 2
    completions = [[{"role": "assistant", "content": text}] for text in ("<b>5</b>", "")]
    given = {"prompts": prompts, "completions": completions, "completion_ids": [[1], [2]], "answer": ["5", "5"]}
    extra = {"trainer_state": object(), "log_extra": print, "log_metric": print}
    found = [function(**given, **extra) for function in functions]
    assert found == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [8.0, None]]


def test_grpo_weights_the_functions_in_the_same_way_as_rewards(tmp_path, tiny_policy):
    """TRL's own trainer calls the functions on conversations."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = tiny_policy
    rewards = build_rewards(TERMS)
    arguments = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=2, num_generations=2,
        reward_weights=rewards.weights, report_to="none", disable_tqdm=True, activation_checkpointing=False,
    )  # fmt: skip
    prompt = [{"role": "user", "content": "2+3?"}]
    data = Dataset.from_list([{"prompt": prompt, "answer": "5"}] * 2)
    trainer = GRPOTrainer(model, rewards.trl_functions(), arguments, train_dataset=data, processing_class=tokenizer)
    texts = ["<b>5</b>", "4"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    found = trainer._calculate_rewards([data[0], data[1]], [prompt] * 2, completions, [[1], [2]])
    scores = rewards([prompt] * 2, texts, {"answer": ["5", "5"]})
    assert found.T.tolist() == [list(values) for values in scores.values]
    total = (found * trainer.reward_weights).nansum(dim=1)
    assert total.tolist() == pytest.approx(list(scores.totals))


@pytest.fixture
def tiny_policy():
    from transformers import LlamaConfig, LlamaForCausalLM

    from llm_lab.hf.tokenizers import make_byte_tokenizer

    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config), tokenizer


# The user's own function


def test_a_user_function_gets_texts_prompts_and_columns(tmp_path):
    path = write_function(
        tmp_path,
        """
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass
        class Word:
            text: str

        def polite(completions, prompts, **columns):
            assert all(isinstance(text, str) for text in completions)
            return [float(Word("please").text in text) + (prompt == "x") for text, prompt in zip(completions, prompts)]
        """,
    )
    rewards = build_rewards([{"python": f"{path}:polite", "weight": 2.0}])
    assert rewards(["?", "x"], ["please", "now"], {"other": [1, 2]}).totals == (2.0, 2.0)


@pytest.mark.parametrize(
    ("body", "name", "why"),
    [
        (None, "polite", "can't be read: No such file"),
        ("def polite(completions, **c): return [", "polite", "not valid Python.*line 2"),
        ("def polit(completions, **c): return []", "polite", "no function `polite`.*Did you mean polit"),
        ("x = 1", "polite", "its functions: none"),
        ("def polite(completions): return []", "polite", r"add `\*\*columns`"),
        ("def polite(texts, **columns): return []", "polite", "no argument `completions`"),
        ("async def polite(completions, **c): return []", "polite", "is async"),
        ("def polite(completions, /, **c): return []", "polite", "passed by name"),
    ],
)
def test_problems_of_a_reward_file_are_found_without_running_it(tmp_path, body, name, why):
    path = tmp_path / "mine.py"
    if body is not None:
        path.write_text(f"raise SystemExit\n{body}")
    problems = check_files([{"name": "regex", "pattern": "a"}, {"python": f"{path}:{name}"}])
    assert len(problems) == 1
    assert problems[0].key == "rewards.1.python"
    with pytest.raises(UserError, match=why):
        find_function(f"{path}:{name}")


def test_a_valid_reward_file_passes_the_check_without_running(tmp_path):
    path = write_function(tmp_path, "raise SystemExit\ndef f(completions, **columns): return []\n")
    assert check_files([{"python": f"{path}:f"}]) == []


@pytest.mark.parametrize("spec", ["mine.py", "os.path:join", "mine.py:", ":polite", "mine.py:not a name"])
def test_anything_but_file_and_function_is_refused(spec):
    with pytest.raises(UserError, match="not a function in a file"):
        find_function(spec)


def test_a_failing_reward_file_reports_the_line(tmp_path):
    path = write_function(tmp_path, "import math\n1 / 0\ndef f(completions, **columns): return []\n")
    with pytest.raises(UserError, match=r"ZeroDivisionError: division by zero \(line 2 of mine\.py\)"):
        load_function(f"{path}:f")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("[1.0]", "returned 1 numbers for 2 completions"),
        ("[1.0, 'good']", "returned str 'good' for completion 2 of 2"),
        ("[1.0, '2.0']", "returned str '2.0' for completion 2 of 2"),
        ("[1.0, [2.0]]", "returned list"),
        ("[1.0, float('inf')]", "returned inf for completion 2 of 2"),
        ("1.0", "returned float '1.0' instead of a list of 2 numbers"),
        ("'ab'", "returned str 'ab' instead of a list"),
        ("None", "returned NoneType 'None' instead of a list"),
    ],
)
def test_anything_but_a_list_of_numbers_is_refused(tmp_path, value, why):
    path = write_function(tmp_path, f"def f(completions, **columns): return {value}\n")
    rewards = build_rewards([{"python": f"{path}:f"}])
    with pytest.raises(UserError, match=rf"rewards\.0\.python = f: it {why}"):
        rewards(["?", "?"], ["a", "b"])


def test_arrays_and_tensors_are_accepted_as_lists(tmp_path):
    path = write_function(
        tmp_path,
        """
        import numpy, torch
        def f(completions, **columns): return numpy.array([1.0, 0.5])
        def g(completions, **columns): return torch.tensor([True, False])
        def h(completions, **columns): return [None, float("nan")]
        """,
    )
    rewards = build_rewards([{"python": f"{path}:{name}"} for name in "fgh"])
    scores = rewards(["?", "?"], ["a", "b"])
    assert scores.values[:2] == ((1.0, 0.5), (1.0, 0.0))
    assert all(math.isnan(value) for value in scores.values[2])


def test_a_failing_function_reports_the_completion(tmp_path):
    path = write_function(
        tmp_path,
        """
        def f(completions, **columns):
            return [float(text) for text in completions]
        """,
    )
    rewards = build_rewards([{"python": f"{path}:f"}])
    with pytest.raises(UserError, match=r"failed at completion 2 of 3, 'blue': ValueError: .*\(line 3 of mine\.py\)"):
        rewards(["?"] * 3, ["1", "blue", "2"])


def test_the_check_imports_no_heavy_library():
    import subprocess
    import sys

    program = (
        "import sys, llm_lab.rewards.build as build; build.build_rewards([{'name': 'exact_number'}]); "
        "assert not {'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_bad_terms_are_reported_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        build_rewards([{"python": "nowhere.py:f"}, {"python": "nothing"}])
    assert [problem.key for problem in caught.value.problems] == ["rewards.0.python", "rewards.1.python"]
