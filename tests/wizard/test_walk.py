"""Walking through a flow: going back, defaults, effects that happen once, and kept answers."""

from support.wizard_answers import BACK, ENTER, answers

from llm_lab.wizard.questions import (
    Answer,
    BackTo,
    Choice,
    Next,
    OpenChat,
    Question,
    RunDoctor,
    Wait,
    same,
    yes_no,
)
from llm_lab.wizard.walk import DRAFTS, Walk, forget_looks, read_drafts, remember, write_drafts

SIZES = (Choice("small", "a small one"), Choice("large", "a large one"), Choice("huge", "a huge one", "no room"))


def flow():
    size = yield Question("size", "Which size?", choices=SIZES)
    name = yield Question("name", "Name?", "text", default=f"my-{size}")
    done = yield yes_no("done", "Done?", default=True)
    return Next("after", {"size": size, "name": name, "done": done})


def test_a_flow_returns_the_answers():
    assert answers(flow, ["large", "mine", "No"]).result.arguments == {"size": "large", "name": "mine", "done": False}


def test_enter_takes_the_first_possible_choice_or_the_default():
    assert answers(flow, [ENTER] * 3).result.arguments == {"size": "small", "name": "my-small", "done": True}
    first_is_impossible = Question("size", "Which size?", choices=SIZES[::-1])
    assert first_is_impossible.suggested == "large"


def test_going_back_asks_the_previous_question_with_its_answer_as_default():
    visit = answers(flow, ["large", "mine", BACK])
    assert (visit.question.key, visit.question.default) == ("name", "mine")


def test_going_back_several_times_and_forward_with_enter_keeps_the_answers():
    visit = answers(flow, ["large", "mine", BACK, BACK, "small", "mine", ENTER])
    assert visit.keys == ["size", "name", "done", "name", "size", "name", "done", "done"][: len(visit.keys)]
    walk = Walk(flow)
    for answer in ("large", "mine"):
        walk.answer(answer)
    walk.back(), walk.back()
    assert walk.question.suggested == "large"
    walk.answer("large")
    assert walk.question.suggested == "mine"


def test_a_default_that_was_taken_follows_the_other_answers():
    walk = Walk(flow)
    walk.answer("large")
    walk.answer("my-large")  # Enter
    walk.back(), walk.back()
    walk.answer("small")
    assert walk.question.suggested == "my-small"


def test_an_answer_given_with_enter_still_means_the_same_when_the_list_has_grown_meanwhile():
    names = ["b", "a"]

    def of_a_list():
        name = yield Question("name", "Which?", choices=tuple(Choice(name, name) for name in names))
        yield Question("what", f"What with {name}?", "text", default="")

    walk = Walk(of_a_list)
    walk.answer("b")  # Enter
    walk.answer("x")
    names.insert(0, "c")
    walk.back()
    assert walk.item.text == "What with b?"
    walk.back()
    assert walk.question.suggested == "b"
    assert Walk(of_a_list, (Answer("name", "gone", is_default=True),)).item.key == "name"


def test_the_first_question_has_nothing_to_go_back_to():
    assert not Walk(flow).back()


def test_an_effect_is_executed_once_however_often_the_user_goes_back():
    def with_effect():
        yield Question("first", "First?", "text", default="")
        result = yield RunDoctor()
        yield Question("second", f"Second, after {result}?", "text", default="")
        yield Question("third", "Third?", "text", default="")

    visit = answers(with_effect, ["a", "b", BACK, "c"], execute=lambda effect: "good")
    assert visit.effects == [RunDoctor()]
    assert "Second, after good?" in visit.texts()
    assert visit.question.key == "third"


def test_going_back_past_an_effect_asks_the_question_before_it():
    def with_effect():
        yield Question("first", "First?", "text", default="")
        yield RunDoctor()
        yield Question("second", "Second?", "text", default="")

    assert answers(with_effect, ["a", BACK]).question.key == "first"


def test_a_flow_goes_back_to_a_question_by_its_key():
    def looking():
        yield Question("name", "Name?", "text", default="")
        picked = yield Question("what", "What?", choices=(Choice("chat", "chat"), Choice("end", "end")))
        if picked == "chat":
            yield OpenChat("it")
            yield BackTo("what")
        return picked

    visit = answers(looking, ["x", "chat", "chat", "end"])
    assert visit.effects == [OpenChat("it")] * 2
    assert visit.result == "end"


def test_kept_answers_are_replayed_as_far_as_they_still_fit():
    kept = (Answer("size", "large"), Answer("name", "my-large", is_default=True))
    walk = Walk(flow, kept)
    assert walk.item.key == "done"
    for wrong in (Answer("size", "huge"), Answer("size", "gone"), Answer("other", "large")):
        assert Walk(flow, (wrong, *kept[1:])).item.key == "size"


def test_drafts_are_kept_on_disk(in_tmp_path):
    drafts = {"after": Next("after", {"size": "large"}, (Answer("tokenizer", {"bpe": 300}), Answer("done", True)))}
    write_drafts(drafts)
    assert read_drafts() == drafts
    write_drafts({})
    assert not DRAFTS.exists()
    DRAFTS.write_text('{"after": 1}')
    assert read_drafts() == {}


def test_results_are_cached_until_the_cache_is_cleared():
    looked = []

    @remember
    def look(path, kind="a"):
        looked.append((path, kind))
        return path

    look("x"), look("x"), look("x", kind="b")
    assert looked == [("x", "a"), ("x", "b")]
    forget_looks()
    look("x")
    assert len(looked) == 3


def test_a_failed_call_is_not_cached():
    found = iter([ValueError("not there"), "there"])

    @remember
    def look():
        value = next(found)
        if isinstance(value, Exception):
            raise value
        return value

    try:
        look()
    except ValueError:
        assert look() == "there"


def test_waiting_is_announced_and_needs_no_answer():
    def slow():
        yield Question("path", "Which?", "text", default="")
        yield Wait("Reading ...")
        yield Question("more", "More?", "text", default="")

    visit = answers(slow, ["x", BACK])
    assert visit.question.key == "path"
    assert len(Walk(slow, [Answer("path", "x")]).answers) == 1


def test_true_and_1_are_different_answers_and_a_tuple_equals_a_list():
    assert not same(True, 1)
    assert same((1, 2), [1, 2])


def test_a_choice_that_is_impossible_is_refused_with_its_reason():
    question = Question("size", "Which size?", choices=SIZES)
    assert question.problem("huge") == "no room"
    assert question.problem("small") is None
    several = Question("sizes", "Which sizes?", "several", choices=SIZES, default=[])
    assert several.problem(["small", "large"]) is None
    assert several.problem(["small", "huge"]) == "no room"
