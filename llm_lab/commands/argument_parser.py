"""A parser that reports wrong arguments in our words. It imports only argparse, so that help is instant."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from llm_lab.errors import SIMILAR, Problem, UserError, closest, did_you_mean, one_of

DELETE = ("rm", "gc")  # commands that delete files
# Names of commands in other programs, with ours.
SAID_ELSEWHERE = {
    "train": "run RECIPE",
    "finetune": "run RECIPE",
    "resume": "run RUN --resume",
    "generate": "chat MODEL --prompt TEXT",
    "evaluate": "eval MODEL",
    "info": "show MODEL",
    "runs": "list runs",
    "find": "list runs TEXT",
    "rename": "mv RUN NAME",
    "delete": "rm RUN",
    "remove": "rm RUN",
    "help": "--help",
}
STUDY_OPTION = "option=value"
PLAIN = "lines only, without frames, colors and redrawing, for screen readers (or LLM_LAB_PLAIN=1)"
# Messages of argparse about a value, with ours.
NOT_OF_A_TYPE = {"int": "it is not a whole number", "float": "it is not a number"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors, and whose help keeps the lines of the examples."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"formatter_class": _Help, **options})
        self._words: Sequence[str] = ()

    def flag(self, name: str, help: str) -> None:
        """Add an option without a value."""
        self.add_argument(name, action="store_true", help=help)

    def option(self, name: str, value: str, help: str, **options: Any) -> None:
        """Add an option with a value. value: its name in the help."""
        self.add_argument(name, metavar=value, help=help, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; the words are kept for its errors."""
        self._words = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with what argparse found wrong, in our words."""
        raise UserError(self._problem(message))

    def _problem(self, message: str) -> Problem:
        how = f"`{self.prog} --help` shows its arguments."
        # The value of an unknown option is taken for an argument, or leaves none.
        if unknown := next(filter(self._is_unknown_option, self._words), None):
            return _unknown(unknown, self)
        if missing := re.fullmatch(r"the following arguments are required: (.+)", message):
            fix = f"For example: {self.examples[0]}" if self.examples else how
            names = missing[1].split(", ")
            are = f"the argument {names[0]} is" if len(names) == 1 else f"the arguments {' and '.join(names)} are"
            return Problem(self.prog, f"{are} missing", fix=fix)
        found = re.fullmatch(r"argument ([^:]+): (.+)", message, re.DOTALL)
        if not found:
            return Problem(self.prog, message, fix=how)
        name, why = found[1], found[2]
        action = next((one for one in self._actions if name in _names_of(one)), None)
        label = action.metavar if action and not action.option_strings and action.metavar else name
        key = f"{self.prog} {label}" if action and not action.option_strings else name.split("/")[-1]
        if choice := re.match(r"invalid choice: (.*) \(choose from", why):
            known = [str(one) for one in action.choices or ()] if action else []
            value = choice[1].strip("'\"")
            if action and not action.option_strings:
                why = f"there is no such {label}"
                return Problem(f"{self.prog} {value}", why, allowed=one_of(known), fix=did_you_mean(value, known))
            return Problem(key, "there is no such choice", value, one_of(known), did_you_mean(value, known))
        if typed := re.fullmatch(r"invalid (\w+) value: (.*)", why):
            return Problem(key, NOT_OF_A_TYPE.get(typed[1], f"it is not a {typed[1]}"), typed[2].strip("'\""), fix=how)
        if why == "expected one argument" and action:
            return Problem(key, f"requires a value: {key} {action.metavar or 'VALUE'}", fix=how)
        return Problem(key, why, fix=how)

    def _is_unknown_option(self, word: str) -> bool:
        """Return whether a word looks like an option but is not one; options may be shortened."""
        name = word.partition("=")[0]
        known = [text for action in self._actions for text in action.option_strings]
        is_option = re.match(r"-[^\d.]", name) is not None
        return is_option and not any(text.startswith(name) for text in known)

    def format_help(self) -> str:
        """Return the help; its usage names the arguments in the order in which they are written."""
        if self.usage is None:
            words = [self._word_of(one) for one in self._actions if not one.option_strings]
            self.usage = " ".join([self.prog, *words, "[options]"])
        return super().format_help()

    def _word_of(self, action: argparse.Action) -> str:
        name = str(action.metavar or action.dest)
        several = f"{name} ..." if action.nargs in ("*", "+") else name
        return f"[{several}]" if action.nargs in ("*", "?") else several

    @property
    def examples(self) -> list[str]:
        """The command lines of the examples."""
        return [line.strip() for line in (self.epilog or "").splitlines() if line.startswith("  llm-lab")]

    @property
    def options(self) -> list[str]:
        """The options, written in full."""
        return [text for action in self._actions for text in action.option_strings if text.startswith("--")]


class _Help(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return text
        return super()._fill_text(text, width, indent)


def _names_of(action: argparse.Action) -> set[str]:
    """Return the names that argparse may use for an argument."""
    return {"/".join(action.option_strings), *action.option_strings, str(action.metavar), action.dest}


def parse_with(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command; `command` is the path of its function. UserError if they are invalid."""
    commands = commands_of(parser)
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in commands:
        meant = f"That is `llm-lab {SAID_ELSEWHERE[name]}`." if name in SAID_ELSEWHERE else _similar(name, commands)
        fix = meant or "`llm-lab --help` lists the commands."
        raise UserError(Problem(f"llm-lab {name}", "there is no such command", fix=fix))
    arguments, rest = parser.parse_known_args(words)
    # argparse takes all key=value arguments or none, so those after an option (run R --resume a=1) are left over.
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        raise UserError(_unknown(rest[0], commands[name] if name else parser))
    return arguments


def _similar(name: str, commands: Iterable[str]) -> str | None:
    """Return "Did you mean X?" with the closest command, or None. One that deletes files is not named alone."""
    near = difflib.get_close_matches(name, list(commands), n=2, cutoff=SIMILAR)
    shown = near if near and near[0] in DELETE else near[:1]
    return f"Did you mean {' or '.join(shown)}?" if shown else None


def _unknown(word: str, parser: Parser) -> Problem:
    """Return the problem with an argument that a command does not have."""
    how = f"`{parser.prog} --help` shows its arguments."
    if not word.startswith("-"):
        return Problem(f"{parser.prog} ... {shlex.quote(word)}", "one argument too many", fix=how)
    option = word.partition("=")[0]
    known = [name.lstrip("-") for name in parser.options if name != "--help"]
    near = closest(option.lstrip("-"), known)  # without the dashes, which all of them have
    fix = f"Did you mean --{near}?" if near else None
    if fix is None and any(action.metavar == STUDY_OPTION for action in parser._actions):
        fix = f"Options of the study are written without --: {option.lstrip('-')}=VALUE."
    return Problem(option, f"`{parser.prog}` has no such option", fix=fix or how)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """Return the parser of each command, by name."""
    return next(dict(one.choices) for one in parser._actions if isinstance(one, argparse._SubParsersAction))


class Commands:
    """Adds commands to a parser."""

    def __init__(self, subparsers: Any):
        self._subparsers = subparsers
        self._common = argparse.ArgumentParser(add_help=False)
        self._common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        self._common.add_argument("--plain", action="store_true", default=argparse.SUPPRESS, help=PLAIN)

    def add(self, name: str, about: str, does: str, *examples: str, more: str = "") -> Parser:
        """Return the parser of a new command.

        about: one sentence, without a capital letter and a period. does: module.function in llm_lab.commands. examples:
        without llm-lab. more: further text for its help.
        """
        description = f"{about[0].upper()}{about[1:]}.{' ' if more else ''}{more}"
        epilog = "\n".join(["examples:", *(f"  llm-lab {example}" for example in examples)])
        parser = self._subparsers.add_parser(
            name, help=about, description=description, epilog=epilog, parents=[self._common]
        )
        parser.set_defaults(command=does)
        return parser
