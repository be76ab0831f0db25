"""Experiments found in folders: each is a Python file, read as text and never imported, so that listing runs no code.

A file is an experiment if it has APP_NAME, a class Options (a pydantic model) and run(options, study). Its name on the
command line is the file name.
"""

from __future__ import annotations

import ast
import inspect
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Optional, get_args, get_origin

from pydantic import Field, create_model

from llm_lab.errors import Problem, UserError, did_you_mean, one_of, suggest
from llm_lab.recipe.fields import Bool, Float, Group, Int, Key, keys_of
from llm_lab.recipe.files import format_value, parse_yaml
from llm_lab.recipe.validate import validate_as
from llm_lab.runs.folder import find_checkpoint
from llm_lab.safe_text import redact

SHIPPED = Path(__file__).resolve().parent / "experiments"
OWN = Path("experiments")
LARGEST_FILE = 1_000_000  # characters
TYPES: Mapping[str, Any] = {"int": Int, "float": Float, "bool": Bool, "str": str}
# The arguments of Field that may be given for an option, as literals.
CONSTRAINTS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern", "description")
READABLE = "int, float, bool, str, Literal of texts or numbers, list or tuple of these, or one of these or None"
MODEL = "model"  # an option of this name is a run, a folder with a model, or a name on the Hub
A_MODEL = "a run, a folder or a name on the Hub"
OR_NULL = ", or null"
_MISSING = object()


@dataclass(frozen=True)
class Experiment:
    """An experiment as its file describes it. error: why it can't run, or None.

    title: its APP_NAME. takes: its TAKES, roughly how long it takes, as text, or "". summary: the first paragraph of
    its docstring; about: the rest. options: a pydantic model of the options, made from the literals in the file.
    """

    name: str
    file: Path
    title: str = ""
    summary: str = ""
    about: str = ""
    options: type[Group] | None = None
    error: str | None = None
    takes: str = ""

    @property
    def is_shipped(self) -> bool:
        return self.file.parent == SHIPPED

    def option_keys(self) -> list[Key]:
        """Return the options in order; [] if they can't be read."""
        return list(keys_of(self.options)) if self.options else []


class _Unreadable(Exception):
    """Raised with the reason why a file is not a complete experiment."""


def list_experiments() -> list[Experiment]:
    """Return the experiments in ./experiments, then the shipped ones whose names are not used there."""
    found: dict[str, Experiment] = {}
    for folder in (OWN, SHIPPED):
        for file in sorted(folder.glob("*.py")) if folder.is_dir() else ():
            if not file.name.startswith("_") and file.stem not in found and (one := read_experiment(file)):
                found[one.name] = one
    return list(found.values())


def find_experiment(name: str) -> Experiment:
    """Return the experiment with a name, title or file. UserError if there is none, or its file is broken."""
    known = list_experiments()
    wanted = _same(name.removesuffix(".py"))
    found = next((one for one in known if wanted in map(_same, (one.name, one.title, str(one.file)[:-3]))), None)
    if found is None:
        fix = suggest(name, [one.name for one in known], "There are none.")
        raise UserError(Problem(name, "there is no such study", fix=fix))
    if found.error:
        raise UserError(Problem(str(found.file), found.error))
    return found


def _same(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def read_experiment(file: Path) -> Experiment | None:
    """Read a file without running it; None if it is not one, without APP_NAME, Options or run."""
    try:
        module = _parse(file)
    except _Unreadable as error:
        return Experiment(file.stem, file, error=str(error))
    constants = _constants(module.body)
    title, takes = constants.get("APP_NAME"), constants.get("TAKES", "")
    options = next((node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Options"), None)
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    run = next((node for node in functions if node.name == "run"), None)
    if title is None and options is None and run is None:
        return None
    summary, _, about = inspect.cleandoc(ast.get_docstring(module) or "").partition("\n\n")
    found = Experiment(file.stem, file, str(title or ""), " ".join(summary.split()), about.strip(), takes=str(takes))
    try:
        if not isinstance(title, str) or not title.strip():
            raise _Unreadable('it has no APP_NAME = "a title" (a literal text)')
        if options is None:
            raise _Unreadable("it has no class Options(BaseModel)")
        _require_run(run)
        return replace(found, options=_read_options(options, constants))
    except _Unreadable as error:
        return replace(found, error=str(error))


def _parse(file: Path) -> ast.Module:
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > LARGEST_FILE:
            raise _Unreadable(f"it has more than {LARGEST_FILE:,} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes, which are shown when it runs
            return ast.parse(text)
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        raise _Unreadable(f"syntax error{where}: {error.msg}") from None
    except UnicodeDecodeError:
        raise _Unreadable("it is not UTF-8 text") from None
    except OSError as error:
        raise _Unreadable(f"it can't be read: {error.strerror}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _Unreadable(f"it can't be read as Python: {error or type(error).__name__}") from None


def _require_run(run: ast.FunctionDef | ast.AsyncFunctionDef | None) -> None:
    if run is None:
        raise _Unreadable("it has no function run(options, study)")
    if isinstance(run, ast.AsyncFunctionDef):
        raise _Unreadable("run must be a plain function, not async")
    known = [*run.args.posonlyargs, *run.args.args]
    required = len(known) - len(run.args.defaults)
    if not (required <= 2 <= len(known)) or any(default is None for default in run.args.kw_defaults):
        raise _Unreadable("run must take two arguments: run(options, study)")


def _constants(body: Iterable[ast.stmt]) -> dict[str, Any]:
    """Return the literals that are assigned to names at the top of a file."""
    found: dict[str, Any] = {}
    for node in body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                literal = _literal(value, found)
                found.pop(target.id, None)
                if literal is not _MISSING:
                    found[target.id] = literal
    return found


def _literal(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """Return the value of a literal, or of a name that the file assigns a literal to; _MISSING for anything else."""
    if isinstance(node, ast.Name):
        return constants.get(node.id, _MISSING)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _MISSING


# Options


def _read_options(options: ast.ClassDef, constants: Mapping[str, Any]) -> type[Group]:
    fields: dict[str, Any] = {}
    for node in options.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            name = node.target.id
            if name != "model_config":
                fields[name] = _read_option(f"Options.{name}", node, constants)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that hide a method of pydantic's
            model: type[Group] = create_model("Options", __base__=Group, **fields)
            model.model_rebuild(force=True)
        defaults = {key.path: key.default for key in keys_of(model) if not key.required and key.default is not None}
        problems = [one for one in validate_as(model, defaults)[1] if one.key.partition(".")[0] in defaults]
    except Exception as error:  # a bound that doesn't fit the type, or a name that pydantic forbids
        raise _Unreadable(f"its options can't be read: {str(error).splitlines()[0]}") from None
    if problems:
        raise _Unreadable(f"the default of an option is not allowed: {problems[0]}")
    return model


def _read_option(name: str, node: ast.AnnAssign, constants: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (type, pydantic's Field) of one option."""
    annotation = _read_type(node.annotation, constants)
    if annotation is _MISSING:
        why = f"{name}: its type can't be read: {ast.unparse(node.annotation)}. Allowed: {READABLE}"
        raise _Unreadable(why)
    default: ast.expr | None = node.value
    constraints: dict[str, Any] = {}
    if isinstance(default, ast.Call) and _last_name(default.func) == "Field":
        given = {word.arg: word.value for word in default.keywords if word.arg}
        default = default.args[0] if default.args else given.get("default")
        if default is None and "default_factory" in given:
            raise _Unreadable(f"{name}: its default can't be read without running the file; write it out")
        for key in CONSTRAINTS:
            if key in given and (value := _literal(given[key], constants)) is not _MISSING:
                constraints[key] = value
            elif key in given:
                raise _Unreadable(f"{name}: {key} can't be read without running the file; write it out")
    value = ... if default is None else _literal(default, constants)
    if value is _MISSING:
        raise _Unreadable(f"{name}: its default can't be read without running the file; write it out")
    constraints.setdefault("description", name.partition(".")[2].replace("_", " "))
    if get_origin(annotation) is Literal:
        constraints["json_schema_extra"] = {"choices": dict.fromkeys(get_args(annotation), "")}
    return annotation, Field(tuple(value) if isinstance(value, list) else value, **constraints)


def _read_type(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """Return the type that an annotation denotes, or _MISSING."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return _read_type(ast.parse(node.value, mode="eval").body, constants)
        except (SyntaxError, ValueError):
            return _MISSING
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [
            side for side in (node.left, node.right) if not (isinstance(side, ast.Constant) and side.value is None)
        ]
        return _optional(_read_type(sides[0], constants)) if len(sides) == 1 else _MISSING
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _read_generic(_last_name(node.value), inner, constants)
    return TYPES.get(_last_name(node), _MISSING)


def _read_generic(name: str, inner: list[ast.expr], constants: Mapping[str, Any]) -> Any:
    if name == "Literal":
        values = tuple(_literal(item, constants) for item in inner)
        allowed = all(isinstance(value, str | int) for value in values)
        return Literal[values] if allowed else _MISSING
    first = _read_type(inner[0], constants)
    if first is _MISSING:
        return _MISSING
    if name == "Optional":
        return _optional(first)
    return tuple[first, ...] if name in ("list", "List", "tuple", "Tuple", "Sequence") else _MISSING  # type: ignore[valid-type]


def _optional(inner: Any) -> Any:
    return inner if inner is _MISSING else Optional[inner]  # noqa: UP045 (a type made from a value)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


# Values for options


def read_values(experiment: Experiment, words: Iterable[str]) -> dict[str, Any]:
    """Return the values that key=value words give to options, typed. UserError with every problem at once."""
    keys = {key.path: key for key in experiment.option_keys()}
    given: dict[str, Any] = {}
    problems: list[Problem | str] = []
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals or not name:
            example = f"For example {next(iter(keys))}=..." if keys else "It has none."
            problems.append(Problem(word, "an option has the form name=value", fix=example))
            continue
        try:
            given[name] = _typed(keys.get(name), text)
        except UserError as error:
            problems += error.problems
    return check_values(experiment, given, problems)


def read_value(experiment: Experiment, name: str, text: str) -> Any:
    """Return the value of an option from typed text. UserError if it is not allowed."""
    assert experiment.options is not None
    value = _typed(next(key for key in experiment.option_keys() if key.path == name), text)
    given = tuple(value) if isinstance(value, list) else value
    problems = validate_as(experiment.options, {name: given})[1]
    if own := [problem for problem in problems if problem.key.partition(".")[0] == name]:
        raise UserError(*own)
    return value


def _typed(key: Key | None, text: str) -> Any:
    """Return a value in the type of its option: text stays text, and a list may be written as 1,2,3."""
    text = text.strip()
    if key is None or _is_none(key, text):
        return parse_yaml(text, "option") if key is None else None
    if key.kind == "list" and not text.startswith("["):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [part if _holds_texts(key) else parse_yaml(part, key.path) for part in parts]
    is_text = key.kind == "text" or (key.kind == "choice" and all(isinstance(one, str) for one in key.choices or ()))
    return text if is_text else parse_yaml(text, key.path)


def _is_none(key: Key, text: str) -> bool:
    """Return whether a text leaves an option open; screens call that none, recipes null."""
    return not key.required and key.default is None and (text == "null" or (text == "none" and not key.choices))


def _holds_texts(key: Key) -> bool:
    """Return whether the entries of a list are texts."""
    stack = [key.info.annotation]
    while stack:
        item = stack.pop()
        if item is str:
            return True
        stack += get_args(item)
    return False


def check_values(
    experiment: Experiment, given: Mapping[str, Any], problems: Sequence[Problem | str] = ()
) -> dict[str, Any]:
    """Return all options, with defaults for those not given. UserError with all problems, the given ones too."""
    assert experiment.options is not None
    known = [key.path for key in experiment.option_keys()]
    unknown = [name for name in given if name not in known]
    why, all_of_them = f"{experiment.name} has no such option", f"It has {one_of(known)}." if known else "It has none."
    problems = [*problems, *(Problem(name, why, fix=did_you_mean(name, known) or all_of_them) for name in unknown)]
    given = {name: value for name, value in given.items() if name in known}
    as_tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    checked, found, _ = validate_as(experiment.options, as_tuples)
    found = [problem for problem in found if problem.key not in {getattr(one, "key", "") for one in problems}]
    if not found and MODEL in model_options(experiment) and isinstance(name := given.get(MODEL), str) and name.strip():
        try:
            find_checkpoint(name)
        except UserError as error:
            found = [replace(one, key=MODEL, value=name) for one in error.problems if isinstance(one, Problem)]
    if problems or found or checked is None:
        raise UserError(*problems, *found)
    return checked.model_dump()


def model_options(experiment: Experiment) -> list[str]:
    """Return the options that name a model."""
    return [key.path for key in experiment.option_keys() if key.path == MODEL and key.kind == "text"]


def allowed_words(key: Key) -> str:
    """Return what may be given for an option, in words: none where it can be left out."""
    words = A_MODEL if key.path == MODEL and key.kind == "text" else key.allowed().removesuffix(OR_NULL)
    return f"{words}, or none" if key.allowed().endswith(OR_NULL) else words


def shown_value(value: Any) -> str:
    """Return a value of an option for a screen."""
    return "none" if value is None else written(value)


def defaults_of(experiment: Experiment) -> dict[str, Any]:
    """Return the defaults of the options that have one."""
    return {key.path: key.default for key in experiment.option_keys() if not key.required}


def command(experiment: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the command of a study, with the options that are not the defaults."""
    changed = {name: value for name, value in options.items() if name not in defaults or defaults[name] != value}
    words = [f"{name}={written(value)}" for name, value in changed.items()]
    return redact(" ".join(["llm-lab", "study", experiment, *map(shlex.quote, words)]))


def written(value: Any) -> str:
    """Return a value of an option as a user would type it."""
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    return value if isinstance(value, str) else format_value(value)
