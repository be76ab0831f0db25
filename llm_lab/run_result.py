"""Results of the Python API: runs, pictures, comparisons and chats, each with a display in notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import Problem, UserError
from llm_lab.recipe.files import read_recipe_file
from llm_lab.runs.describe import headline_results, warnings_of
from llm_lab.runs.folder import RunFolder, find_run, no_such_run, settle
from llm_lab.runs.glossary import name_of, write
from llm_lab.safe_text import printable

if TYPE_CHECKING:
    import pandas

    from llm_lab.runs.comparison import Answer, Comparison


class Run:
    """A run, read from its folder each time: its facts, numbers and pictures. It can be used wherever a model can.

    path: the folder, its name in checkpoints/, or a prefix of that name. Raises UserError if there is no run.
    """

    def __init__(self, path: str | Path):
        settle()
        given = Path(path)
        found = given if RunFolder(given).run_json.is_file() else find_run(str(path))
        if found is None or not RunFolder(found).run_json.is_file():
            raise no_such_run(str(path))
        self.path = found
        self._folder = RunFolder(found)

    @property
    def facts(self) -> dict[str, Any]:
        """The contents of run.json."""
        return self._folder.facts()

    @property
    def status(self) -> str:
        """Status of the run: running, done, stopped, interrupted or failed."""
        return self._folder.status()

    @property
    def results(self) -> dict[str, Any]:
        """The results of the run, by name."""
        return self.facts.get("results") or {}

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the run, with every value."""
        return read_recipe_file(self._folder.recipe_path)

    @property
    def metrics(self) -> pandas.DataFrame:
        """The numbers of every logged step."""
        import pandas

        return pandas.DataFrame.from_records(self._folder.metrics())

    @property
    def stages(self) -> list[Run]:
        """The runs of a pipeline's stages."""
        return [Run(stage.path) for stage in self._folder.stages()]

    @property
    def base(self) -> str | None:
        """The model that the run started from: a folder, or a name on the Hub; None if it started from scratch."""
        return (self.facts.get("parent") or {}).get("path")

    @property
    def report(self) -> str:
        """The report of the run, as Markdown."""
        file = self._folder.report_path
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def plot(self) -> Picture:
        """Return the curves of the run, or the scores of a pipeline's stages. Raises UserError if there are none."""
        from llm_lab.runs.charts import draw_curves, draw_scores
        from llm_lab.runs.report import collect_scores

        stages = self._folder.stages()
        svg = draw_scores(collect_scores(self._folder)) if stages else draw_curves(self._folder.metrics())
        if svg is None:
            why = "nothing was scored" if stages else "no step was logged"
            fix = f"Its stages have curves: Run({str(self.path)!r}).stages[0].plot()." if stages else None
            raise UserError(Problem(str(self.path), f"there is nothing to draw: {why}", fix=fix))
        return Picture(svg, str(self.path))

    def compare(self, *prompts: str, against: Any = None, device: str | None = None, **settings: Any) -> Compared:
        """Compare answers to prompts from the model that the run started from and from the run's own, side by side.

        against: another model. settings: max_new_tokens, temperature, top_p, seed. Without prompts, the sample prompts
        of the runs are used. Raises UserError if the run started from scratch and `against` is missing.
        """
        other = str(against) if against is not None else self.base
        if other is None:
            fix = 'Name a model to compare with: run.compare("...", against="checkpoints/other").'
            raise UserError(Problem(str(self.path), "this run started from scratch, so it has no base", fix=fix))
        return compare_models([other, str(self)], prompts, device=device, settings=settings)

    def load(self, **options: Any) -> tuple[Any, Any]:
        """Load the run's model; returns (model, tokenizer). options: device, dtype, trust_remote_code."""
        from llm_lab.runner import load

        return load(str(self), **options)

    def chat(self, prompt: str | None = None, **settings: Any) -> Chat | str | None:
        """Chat with the run's model. With a prompt, return its answer.

        Without one, chat in the terminal; in a notebook, return an object to call: chat("Hello"). settings:
        max_new_tokens, temperature, top_p, seed, device.
        """
        from llm_lab.terminal.console import is_terminal

        if prompt is None and is_terminal():
            from llm_lab.commands.model_commands import start_chat

            device = settings.pop("device", None)
            start_chat(str(self), settings=settings, device=device)
            return None
        chat = Chat(str(self), **settings)
        return chat if prompt is None else chat(prompt)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {', '.join(self._headline())}"

    def _headline(self) -> list[str]:
        facts = self.facts
        return [text for text in (facts.get("stage"), self.status, *headline_results(self.results)) if text]

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{_safe(self.path)}</b>: {_safe(', '.join(self._headline()))}</p>"]
        parts += [f"<p>Warning: {_safe(text)}</p>" for text in warnings_of(self._folder)]
        try:
            parts.append(self.plot().svg)
        except UserError:
            rows = [(name_of(key), write(key, value)) for key, value in self.results.items() if _is_number(value)]
            parts.append(html_table((), rows))
        return "\n".join(parts)


class RunFacts(dict[str, Any]):
    """The facts of a run, as a dict; `run` is the run itself."""

    @property
    def run(self) -> Run:
        """The run."""
        return Run(self["path"])

    def _repr_html_(self) -> str:
        return self.run._repr_html_()


class Picture:
    """A picture: shown in notebooks, and saved with save("curves.svg")."""

    def __init__(self, svg: str, of: str):
        self.svg, self._of = svg, of

    def save(self, path: str | Path) -> Path:
        """Write the picture as SVG and return the file."""
        file = Path(path)
        file.write_text(self.svg, encoding="utf-8")
        return file

    def __repr__(self) -> str:
        return f"<picture of {self._of}; write it with .save('picture.svg')>"

    def _repr_svg_(self) -> str:
        return self.svg


class Compared:
    """Models side by side: `comparison` has their answers and measures; printed, or shown in a notebook."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison

    @property
    def answers(self) -> list[tuple[str, ...]]:
        """The answers of all models, one tuple for each prompt."""
        models = self.comparison.models
        return [tuple(model.answers[at].text for model in models) for at in range(len(self.comparison.prompts))]

    def save(self, path: str | Path) -> Path:
        """Write the comparison as .md or .json and return the file."""
        from llm_lab.runs.comparison import write_comparison

        write_comparison(Path(path), self.comparison)
        return Path(path)

    def __repr__(self) -> str:
        from llm_lab.terminal.compare_screen import print_comparison
        from llm_lab.terminal.console import make_console

        console = make_console()
        with console.capture() as captured:
            print_comparison(self.comparison, console)
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        from llm_lab.runs.comparison import best_of, format_measure, label_of, measures_of

        found = self.comparison
        rows: list[tuple[str, ...]] = []
        for at, prompt in enumerate(found.prompts):
            first = found.models[0].answers[at]
            cells = (_answer(first if number else None, model.answers[at]) for number, model in enumerate(found.models))
            rows.append((_safe(prompt), *cells))
        for key in measures_of(found):
            best = best_of(found, key)
            texts = [_safe(format_measure(key, model.numbers.get(key))) for model in found.models]
            rows.append((_safe(label_of(key)), *(f"<b>{t}</b>" if i in best else t for i, t in enumerate(texts))))
        head = [_safe(text) for text in ("", *(model.name for model in found.models))]
        remarks = "".join(f"<p>{_safe(text)}</p>" for text in (f"Outputs: {found.drawn}.", *found.remarks))
        return _table_of_html(head, rows) + remarks


class Chat:
    """A conversation with a model: chat("Hello") returns its answer and keeps both turns.

    settings: max_new_tokens, temperature, top_p, seed, device. Raises UserError if the model can't be loaded, or for an
    unknown setting.
    """

    def __init__(self, checkpoint: str, *, device: str | None = None, **settings: Any):
        from llm_lab.chat.session import ChatSession
        from llm_lab.runner import load

        chosen = _chat_settings(settings)
        self._session = ChatSession(*load(checkpoint, device=device), name=checkpoint, settings=chosen)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far."""
        return list(self._session.messages)

    def reset(self) -> None:
        """Start a new conversation."""
        self._session.reset()

    def __call__(self, text: str) -> str:
        return "".join(self._session.reply(text))

    def __repr__(self) -> str:
        turns = len(self._session.messages) // 2
        return f'<chat with {self._session.name}, {turns} turns so far; say something: chat("Hello")>'


def compare_models(
    names: Sequence[str], prompts: Iterable[str], *, settings: Mapping[str, Any], device: str | None, **options: Any
) -> Compared:
    """Compare models on prompts, and on texts; see evaluation.compare.compare for the options."""
    import dataclasses

    from llm_lab.evaluation.compare import SETTINGS, compare
    from llm_lab.runner import load
    from llm_lab.terminal.progress import show_progress

    chosen = dataclasses.replace(SETTINGS, **_known_settings(settings))
    with show_progress() as listener:
        opener = partial(load, device=device)
        found = compare(names, load=opener, prompts=list(prompts), settings=chosen, listener=listener, **options)
    return Compared(found)


def _chat_settings(settings: Mapping[str, Any]) -> Any:
    from llm_lab.chat.decoding import ChatSettings

    return ChatSettings(**_known_settings(settings))


def _known_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    import dataclasses

    from llm_lab.chat.decoding import ChatSettings
    from llm_lab.errors import did_you_mean, one_of

    known = [field.name for field in dataclasses.fields(ChatSettings)]
    problems = [
        Problem(name, "there is no such setting", value=value, allowed=one_of(known), fix=did_you_mean(name, known))
        for name, value in settings.items()
        if name not in known
    ]
    if problems:
        raise UserError(*problems)
    return dict(settings)


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of texts as HTML; every text is escaped."""
    return _table_of_html([_safe(cell) for cell in head], [[_safe(cell) for cell in row] for row in rows])


def _table_of_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cell = 'style="text-align:left;vertical-align:top;white-space:pre-wrap"'
    top = "".join(f"<th {cell}>{text}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td {cell}>{text}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _answer(first: Answer | None, answer: Answer) -> str:
    """Return an answer as HTML, with what differs from the first model's in bold."""
    from llm_lab.runs.comparison import differences

    if answer.problem:
        return f"<i>{_safe(answer.problem)}</i>"
    if first is None or first.problem:
        return _safe(answer.text)
    parts = [part for part in differences(first.text, answer.text) if part.kind != "gone"]
    return "".join(f"<b>{_safe(part.text)}</b>" if part.kind == "new" else _safe(part.text) for part in parts)


def _safe(value: object) -> str:
    return html.escape(printable(str(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
