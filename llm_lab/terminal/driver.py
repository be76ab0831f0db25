"""The wizard in a terminal: draws screens, asks the questions of a flow, goes back, and executes its effects."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.runs.disk import write_atomically
from llm_lab.wizard.home import AFTER, DRAFT, EVALUATE, LEAVE, LOOK, MODELS, draft_question, menu_question, next_of
from llm_lab.wizard.questions import (
    CheckpointDetails,
    Compare,
    DeleteRun,
    DesignNumbers,
    Effect,
    Form,
    KeepCard,
    Leave,
    LookInside,
    Next,
    OpenChat,
    Panel,
    Pause,
    Plan,
    Question,
    RecipePlan,
    RenameRun,
    ReplayLineage,
    ResumeSweep,
    RunDoctor,
    RunNumbers,
    Screen,
    ShowTokens,
    StartDuel,
    StartRun,
    StartStudy,
    StartSweep,
    Wait,
    WriteDesign,
    WriteRecipe,
)
from llm_lab.wizard.walk import Walk, read_drafts, write_drafts

from .ask import Back, ask, needed_lines, read, wait_for_enter
from .console import (
    captured_output,
    clear_screen,
    is_plain,
    make_console,
    one_line,
    print_error,
    print_waiting,
    printable,
    rows,
)
from .keyboard import Keyboard, ignored_keys
from .prompt_layout import Finish, Resized, wrapped
from .screens import begin_screen, print_design_numbers, print_run_numbers

if TYPE_CHECKING:
    from rich.console import Console

KEPT = "Your answers are kept as a draft."
IGNORED = "Keys pressed while you waited were ignored."
READ_AT_ONCE = (RenameRun, DeleteRun, WriteRecipe)
ROWS_WITH_CURVE = 24  # rows of a terminal; a lower one has no room for the curve
SCROLLED_LINES = 12  # lines assumed above a question that is asked below printed text, which may have scrolled


@dataclass(frozen=True)
class Commands:
    """The commands that the wizard calls, passed in because their folder is above this one."""

    start: Callable[..., int]  # (recipe, overrides, resume=, show_plan=)
    chat: Callable[[str], int]
    show: Callable[..., int]  # (checkpoint, heading=)
    compare: Callable[..., int]  # (checkpoints, prompts=, steps=, adapter_off=, show=)
    replay: Callable[..., int]  # (checkpoint, stop_after_plan=)
    doctor: Callable[..., int]  # (title=, show=)
    study: Callable[..., int]  # (experiment, options)
    look: Callable[..., int]  # (checkpoint, text=, against=, steps=, show=)
    sweep: Callable[..., int]  # (recipe, words, seeds=, preset=)
    duel: Callable[..., int]  # (recipe, words, seeds=, other=)
    resume_sweep: Callable[[str], int]


def run_wizard(commands: Commands, *, debug: bool = False, start: Next | None = None) -> int:
    """Show the menu until the user leaves; return the exit code.

    debug: let internal errors through. start: the flow that is opened before the menu.
    """
    if not is_plain():  # plain mode reads lines
        Keyboard().open()  # until the process ends, so that no key is echoed between two pages, or later in the shell
    wizard = Wizard(commands, debug)
    if start is not None:
        wizard.open(start)
    last: Any = None
    while (last := wizard.ask_menu(last)) != LEAVE:
        known = wizard.drafts.get(last[1]) if last[0] == DRAFT else None
        wizard.open(known or next_of(last))
        last = [DRAFT, wizard.kept] if wizard.kept else last
    clear_screen(make_console())
    return 0


@dataclass
class Wizard:
    """The front end of the flows. drafts: flows that were left, with their answers, by name, the latest last."""

    commands: Commands
    debug: bool = False
    drafts: dict[str, Next] = field(default_factory=read_drafts)
    kept: str = ""  # the flow that was left last, if its draft was kept
    _has_printed: bool = False  # whether an effect's output is on the screen
    _has_ignored: bool = False  # whether keys were pressed while no page could receive them
    _is_leaving: bool = False  # whether the user is leaving for the menu
    _faults: tuple[str, ...] = ()  # keys of a recipe that the last error named

    def open(self, start: Next) -> None:
        """Walk through a flow and those that follow it, until the user is back at the menu."""
        self.kept, self._faults, self._is_leaving = "", (), False
        walks: list[tuple[Next, Walk]] = []  # the last one is active; Esc returns to the one before it
        upcoming: Next | None = start
        while upcoming or walks:
            try:
                if upcoming:
                    begun = self._begin(upcoming)
                    walks = [*(walks if upcoming.can_return else walks[:-1]), begun]
                    upcoming = None
                upcoming = self._finish(*walks[-1])
                if upcoming is None:
                    walks.pop()
                    if self._is_leaving or not walks:
                        return
                    walks[-1][1].back()
            except Back:
                if upcoming is None and walks.pop()[0].flow == AFTER:  # not to the pages from before the run
                    return
                upcoming = None
                if walks:
                    walks[-1][1].back()
            except (KeyboardInterrupt, EOFError):
                _end_line()
                if walks:
                    self._keep(*walks[-1])
                return

    def ask_menu(self, last: Any) -> Any:
        """Ask what to do. Quitting takes two presses of Esc, because Esc leads here from everywhere else."""
        notice, is_sure = KEPT if self.kept else "", False
        drafts = {flow: draft.title for flow, draft in self.drafts.items()}
        while True:
            try:
                return self.ask(replace(menu_question(last, drafts), notice=notice))
            except Back:
                again = "Enter b again to quit." if is_plain() else "Press Esc or Ctrl-D again to quit."
            except KeyboardInterrupt:
                _end_line()
                again = "Press Ctrl-C again to quit."
            except EOFError:
                _end_line()
                return LEAVE
            if is_sure:
                return LEAVE
            notice, is_sure = again, True

    def ask(
        self,
        question: Question,
        keep: Callable[[Question], None] = lambda page: None,
        *,
        trouble: str = "",
        show_help: bool = False,
    ) -> Any:
        """Draw the screen of a question and ask until the answer is accepted. Raises Back.

        keep: receives a page after each change. trouble: why the default, which is the previous answer, was refused.
        show_help: whether the help of the question is open.
        """
        if self._has_ignored:
            notice = "\n".join(filter(None, (question.notice, IGNORED)))
            question, self._has_ignored = replace(question, notice=notice), False
        if question.form is not None:
            question = self._at_fault(question, question.form)
            from .form_page import ask_form
            from .plain_form import ask_plain_form

            if is_plain():
                return ask_plain_form(question, ask_one=self.ask, keep=keep, draw=self._draw)
            return ask_form(question, ask_one=self.ask, keep=keep, numbers=numbers_of)
        above, pane = self._draw(question)
        try:
            answer = ask(question, above=above, pane=pane, trouble=trouble, show_help=show_help)
        except Resized as resized:
            again = replace(question, default=resized.answer)
            return self.ask(again, keep, trouble=resized.trouble, show_help=resized.show_help)
        with self._waiting(question.wait) if question.wait else contextlib.nullcontext():
            refused = question.problem(answer)
        return self.ask(replace(question, default=answer), trouble=refused) if refused else answer

    @contextlib.contextmanager
    def _waiting(self, text: str) -> Iterator[None]:
        """Print what takes a while, and ignore keys meanwhile: they were meant for a page not yet visible.

        If any keys were ignored, the next page says so.
        """
        print_waiting(text)
        try:
            with ignored_keys() as keyboard:
                yield
        finally:
            self._has_ignored = self._has_ignored or bool(keyboard.unread)

    def _at_fault(self, page: Question, form: Form) -> Question:
        """Return a page with the pointer at the row that the last error named."""
        faults, self._faults = self._faults, ()
        rows = [row.key for row in (*form.essentials, *form.rows)]
        found = [row for fault in faults for row in rows if fault == row or fault.startswith(f"{row}.")]
        return replace(page, form=replace(form, at=max(found, key=len))) if found else page

    def _print_error(self, error: LabError) -> None:
        print_error(error)
        self._faults = tuple(problem.key for problem in error.problems if isinstance(problem, Problem))
        wait_for_enter()

    def _begin(self, start: Next) -> tuple[Next, Walk]:
        """Begin a flow, or continue its draft."""
        from llm_lab.wizard.menu import flow_named  # this imports all flows, which the home screen avoids

        kept, begin = self.drafts.get(start.flow), start
        # Values that differ from those of the draft, as from a command line, start the flow without it.
        if kept and not start.answers and start.arguments in ({}, kept.arguments):
            if self.ask(draft_question()):
                begin = kept
            else:
                self._forget(start.flow)
        return replace(begin, answers=start.answers), Walk(
            partial(flow_named(begin.flow), **begin.arguments), begin.answers
        )

    def _keep(self, start: Next, walk: Walk, *, without_last: bool = False) -> None:
        """Keep the answers of a flow as a draft."""
        from llm_lab.wizard.menu import is_kept, title_of

        answers = tuple(walk.kept_without_last if without_last else walk.kept)
        if is_kept(start.flow) and answers and answers != start.answers:
            self.drafts.pop(start.flow, None)
            self.drafts[start.flow] = replace(start, answers=answers, title=title_of(start.flow))
            self.kept = start.flow
            write_drafts(self.drafts)

    def _forget(self, flow: str) -> None:
        """Delete a draft."""
        if self.drafts.pop(flow, None):
            write_drafts(self.drafts)

    def _finish(self, start: Next, walk: Walk) -> Next | None:
        """Ask and execute until the flow ends; return the next flow. Raises Back from its first question."""
        while not walk.ended:
            try:
                if isinstance(walk.item, Leave):
                    self._keep(start, walk, without_last=True)
                    self._is_leaving = True
                    return None
                self._step(walk)
            except LabError as error:
                self._print_error(error)
                if not walk.back():
                    raise Back from None
            except (Back, KeyboardInterrupt, EOFError):
                raise
            except Exception as error:
                if self.debug:
                    raise
                self._keep(start, walk, without_last=True)
                text = f"Internal error: {type(error).__name__}: {error}\nllm-lab --debug shows the traceback."
                make_console(stderr=True).print(text, style="bad")
                wait_for_enter("The draft is kept; Enter goes back to the menu")
                self._is_leaving = True
                return None
        self._forget(start.flow)
        return walk.result

    def _step(self, walk: Walk) -> None:
        if isinstance(walk.item, Wait):
            with self._waiting(walk.item.text):
                walk.finish_effect(None)
            return
        if isinstance(walk.item, Effect):
            walk.finish_effect(self._execute(walk.item))
            return
        try:
            answer = self.ask(walk.question, walk.keep)
        except Back:
            if not walk.back():
                raise
        except Finish:
            walk.finish()
        else:
            walk.answer(answer)

    def _draw(self, question: Question) -> tuple[int, str]:
        """Draw what is above a question; return its number of lines, and the text to scroll together with the question.

        That text is a panel that is higher than the terminal; it has not been drawn then.
        """
        if question.below_output and self._has_printed:
            make_console().print()
            return SCROLLED_LINES, ""
        self._has_printed = False
        screen = question.screen
        console = begin_screen(screen.title, screen.where)
        with captured_output() as output:
            if isinstance(screen.panel, CheckpointDetails):
                self.commands.show(screen.panel.checkpoint, heading=False)
            _print_screen(console, screen)
            for text, style in ((question.notice, "warn"), (question.help, "help")):
                for line in printable(text).splitlines():
                    indent = len(line) - len(line.lstrip())
                    console.print(wrapped(line, console.width, indent and indent + 2), style=style)
        text, title = output.getvalue(), bool(screen.title)
        height = text.count("\n") + title
        if screen.panel and question.kind == "choice" and not is_plain() and height + needed_lines(question) > rows():
            return title, text
        print(text, end="")
        return height, ""

    def _execute(self, effect: Effect) -> bool:
        """Execute an effect; return whether it succeeded."""
        self._has_printed = True
        try:
            if isinstance(effect, Pause):
                wait_for_enter()
            elif isinstance(effect, OpenChat):
                begin_screen("Chat", effect.checkpoint)
                self.commands.chat(effect.checkpoint)
            elif isinstance(effect, ShowTokens):
                _show_tokens(effect)
            else:
                with ignored_keys():
                    self._run(effect)
                if isinstance(effect, READ_AT_ONCE):
                    wait_for_enter()
        except LabError as error:
            self._print_error(error)
            return False
        except OSError as error:
            make_console(stderr=True).print(printable(str(error)), style="bad")
            wait_for_enter()
            return False
        except KeyboardInterrupt as stopped:
            make_console().print(f"\n{str(stopped) or 'Stopped.'}", style="warn")
            if isinstance(effect, StartRun) and str(stopped):  # the message says what was saved
                return True
            wait_for_enter()
            return not isinstance(effect, StartRun)
        return True

    def _run(self, effect: Effect) -> None:
        if isinstance(effect, StartRun):
            print_waiting("Preparing ...")
            self.commands.start(effect.recipe, effect.overrides, resume=effect.resume, show_plan=False)
        elif isinstance(effect, Compare):
            begin_screen(EVALUATE, "side by side")
            names, options = effect.checkpoints, {"steps": effect.steps, "adapter_off": effect.adapter_off}
            self.commands.compare(names, prompts=effect.prompts, show=partial(show_page, EVALUATE), **options)
        elif isinstance(effect, LookInside):
            title = (LOOK, effect.checkpoint)
            begin_screen(*title)
            of = {"text": effect.text, "against": effect.against, "steps": effect.steps}
            self.commands.look(effect.checkpoint, show=partial(show_page, *title), **of)
        elif isinstance(effect, ReplayLineage):
            begin_screen("Replay", effect.checkpoint)
            self.commands.replay(effect.checkpoint, stop_after_plan=effect.only_plan)
        elif isinstance(effect, StartStudy):
            begin_screen("Study", effect.experiment)
            self.commands.study(effect.experiment, effect.options)
        elif isinstance(effect, StartSweep):
            begin_screen("Sweep", effect.recipe)
            print_waiting("Checking all recipes ...")
            self.commands.sweep(effect.recipe, effect.words, seeds=effect.seeds, preset=effect.preset)
        elif isinstance(effect, StartDuel):
            begin_screen("Duel", effect.recipe)
            print_waiting("Checking both recipes ...")
            self.commands.duel(effect.recipe, effect.words, seeds=effect.seeds, other=effect.other)
        elif isinstance(effect, ResumeSweep):
            begin_screen("Resume", effect.folder)
            print_waiting("Checking all recipes ...")
            self.commands.resume_sweep(effect.folder)
        elif isinstance(effect, RunDoctor):
            begin_screen("Doctor")
            print_waiting("Reading ...")
            self.commands.doctor(title="", show=partial(show_page, "Doctor", ""))
        elif isinstance(effect, RenameRun):
            _rename_run(effect)
        elif isinstance(effect, DeleteRun):
            _delete_run(effect)
        elif isinstance(effect, WriteDesign):
            _write_design(effect)
        elif isinstance(effect, KeepCard):
            _keep_card(effect)
        elif isinstance(effect, WriteRecipe):
            _write_recipe(effect)


def show_page(title: str, where: str, draw: Callable[[], None]) -> None:
    """Show the output of a command on a page of its own, scrolled below the title, until Enter is pressed."""
    while True:
        begin_screen(title, where)
        with captured_output() as output:
            draw()
        if is_plain():
            print(output.getvalue(), end="")
            return wait_for_enter()
        try:
            return read(output.getvalue(), above=1)
        except Resized:
            continue  # draw it again for the new width


def _end_line() -> None:
    """End the line after a key such as Ctrl-C has ended a question of plain mode."""
    if is_plain():
        print()


def numbers_of(question: Question, columns: int, most: int) -> list[Any]:
    """Return the first lines of a page's panel, as lists of (style, text): only whole rows; all of a curve or none."""
    from prompt_toolkit.formatted_text import ANSI, to_formatted_text
    from prompt_toolkit.formatted_text.utils import fragment_list_to_text, split_lines

    console, panel = make_console(), question.screen.panel
    console.width = columns

    def lines(*, curve: bool) -> list[Any]:
        with console.capture() as captured:
            if isinstance(panel, RunNumbers):
                print_run_numbers(console, panel.resolved, about=False, curve=curve)
            else:
                _print_panel(console, panel)
        text = captured.get().rstrip("\n")
        return list(split_lines(to_formatted_text(ANSI(text)))) if text else []

    shown = lines(curve=True)
    if len(shown) <= most:
        return shown
    if isinstance(panel, RunNumbers):
        return lines(curve=False)
    while most < len(shown) and fragment_list_to_text(shown[most]).startswith(" "):
        most += 1  # the rest of a row
    return shown[:most]


def _print_screen(console: Console, screen: Screen) -> None:
    """Print what is between the title and a question."""
    _print_panel(console, screen.panel)
    if isinstance(screen.panel, DesignNumbers | RunNumbers) and screen.lines:
        console.print()
    for line in screen.lines:
        console.print(wrapped(one_line(line.text), console.width, line.hang), style=line.style or None)
    if not isinstance(screen.panel, Plan | RecipePlan):  # a plan has a frame of its own
        console.print()


def _print_panel(console: Console, panel: Panel | None) -> None:
    if isinstance(panel, DesignNumbers):
        print_design_numbers(console, panel.resolved)
    elif isinstance(panel, RunNumbers):
        print_run_numbers(console, panel.resolved, curve=rows() >= ROWS_WITH_CURVE)
    elif isinstance(panel, Plan):
        from .plan_panel import plan_panel

        console.print(plan_panel(panel.resolved))
    elif isinstance(panel, RecipePlan):
        from .plan_panel import plan_panel

        job = _job_of(panel)
        for resolved in job.stages:
            console.print(plan_panel(resolved, job.folder_of(resolved)))


def _job_of(plan: RecipePlan) -> Any:
    from llm_lab.job import read_job, with_sizes
    from llm_lab.runner import what_is_left

    job, problems = read_job(plan.recipe, plan.overrides)
    if problems or job is None:
        raise UserError(*problems)
    job = replace(job, stages=tuple(map(with_sizes, job.stages)))
    return what_is_left(job) if plan.resume else job


def _show_tokens(effect: ShowTokens) -> None:
    """Show the data of a draft as tokens, one screen at a time."""
    begin_screen(effect.title, "the data as tokens")
    print_waiting("Reading the data ...")
    from llm_lab.evaluation.xray import xray_stages
    from llm_lab.hf.load import quiet_libraries

    from .xray_view import print_xray

    quiet_libraries()
    with ignored_keys():
        stages = xray_stages([effect.resolved.recipe], examples=1)
    show_page(effect.title, "the data as tokens", partial(print_xray, stages))


def _rename_run(effect: RenameRun) -> None:
    from llm_lab.runs.housekeeping import rename_run

    done = rename_run(effect.run, effect.name.strip())
    make_console().print(one_line(f"{done.old}/ is now {done.new}/"), style="good")


def _delete_run(effect: DeleteRun) -> None:
    from llm_lab.runs.housekeeping import plan_removal, remove

    remove(plan_removal(effect.run))
    make_console().print(one_line(f"Deleted {effect.run}/"), style="good")


def _write_design(effect: WriteDesign) -> None:
    make_console().print("Saving; the first time takes a few seconds ...", style="dim")
    from llm_lab.hf.load import write_design

    write_design(MODELS / effect.name, effect.values)


def _keep_card(effect: KeepCard) -> None:
    from llm_lab.runs.card_answers import keep_answers
    from llm_lab.runs.folder import run_of

    keep_answers(effect.answers, run_of(effect.checkpoint))


def _write_recipe(effect: WriteRecipe) -> None:
    from llm_lab.job import list_recipes

    write_atomically(effect.path, effect.text)
    listed = effect.path in list_recipes()
    how = (
        "Experiments, Run a recipe lists it." if listed else f"Run it with: llm-lab run {shlex.quote(str(effect.path))}"
    )
    make_console().print(one_line(f"Written: {effect.path}. {how}"), style="good")
