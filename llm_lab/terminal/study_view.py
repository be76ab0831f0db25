"""Studies on the screen: the list, one with its options, and the end of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_lab.runs.describe import headline_results
from llm_lab.runs.folder import RunFolder
from llm_lab.studies.experiment_files import Experiment, allowed_words, shown_value
from llm_lab.studies.study import REPORT_PAGE, shown_result

from .console import make_console, one_line
from .listing import table
from .prompt_layout import wrapped

if TYPE_CHECKING:
    from rich.text import Text


def print_experiments(experiments: Sequence[Experiment]) -> None:
    """Print every experiment; for those that can't run, the reason."""
    from rich.text import Text

    console = make_console()
    own = [one for one in experiments if not one.is_shipped]
    shipped = [one for one in experiments if one.is_shipped]
    for title, group in (("your studies: ./experiments", own), ("studies: llm-lab study NAME", shipped)):
        if group:
            console.print(table(title, [(Text(one_line(one.name)), _about(one)) for one in group]))
            console.print()
    hint = (
        "Its options: llm-lab study NAME --dry-run. Your own: a file in ./experiments, see docs/studies.md of LLM Lab."
    )
    console.print(Text(hint, style="dim"), soft_wrap=not console.is_terminal)


def _about(experiment: Experiment) -> Text:
    from rich.text import Text

    if experiment.error:
        return Text(f"can't run: {one_line(experiment.error)}", style="bad")
    return Text(one_line(experiment.title)).append(f"\n{one_line(experiment.summary)}", style="dim")


def print_experiment(experiment: Experiment, options: Mapping[str, Any]) -> None:
    """Print what an experiment is, and its options."""
    from rich.text import Text

    console = make_console()
    console.print(Text(one_line(experiment.title), style="title"))
    console.print(Text(one_line(experiment.summary)), soft_wrap=not console.is_terminal)
    keys = experiment.option_keys()
    room = max(20, console.width - max((len(key.path) for key in keys), default=0) - 2)
    rows = []
    for key in keys:
        value, about = one_line(shown_value(options[key.path])), f"{key.help}. Allowed: {allowed_words(key)}."
        rows.append((key.path, Text(wrapped(value, room)).append(f"\n{wrapped(about, room)}", style="dim")))
    console.print()
    console.print(table("options", rows or [("none", "")]))
    if not experiment.is_shipped:
        console.print(Text(f"\nThis runs the code in {one_line(str(experiment.file))}.", style="dim"))
    console.print()


def print_study_end(folder: RunFolder) -> None:
    """Print the results of a study and the path of its report, or that it can be resumed."""
    from rich.text import Text

    console = make_console()
    results = folder.facts().get("results") or {}
    rows = [(key.replace("_", " "), shown_result(key, value)) for key, value in results.items()]
    if rows:
        console.print(table("results", rows))
        console.print()
    if folder.status() == "done":
        line = f"Report: {folder.path / REPORT_PAGE} (or {folder.report_path.name})"
    else:
        command = (folder.facts().get("study") or {}).get("command")
        line = f"{folder.path}: {folder.status()}.\nStart it again with the same options to resume"
        line += f": {one_line(str(command))}" if command else "."
    console.print(Text(line), soft_wrap=True)


def print_study(folder: RunFolder, *, heading: bool = True) -> None:
    """Print a study: its title and options, its runs, its results. heading: whether to print its name above it."""
    from rich.text import Text

    console = make_console()
    facts = folder.facts()
    about = facts["study"]
    rows = [("study", f"{folder.path}: {folder.status()}"), ("title", str(about.get("title")))]
    rows += [("command", str(about["command"]))] if about.get("command") else []
    if facts.get("error"):
        rows.append(("error", str(facts["error"])))
    children = []
    for name in facts.get("children") or {}:
        child = RunFolder(folder.path / name)
        results = headline_results(child.facts().get("results") or {})
        children.append((name, ", ".join([child.status(), *results])))
    for title, lines in ((folder.path.name if heading else "", rows), ("runs", children)):
        if lines:
            console.print(table(one_line(title), [(one_line(key), Text(one_line(text))) for key, text in lines]))
            console.print()
    print_study_end(folder)
