"""Build the reward of a recipe from its terms: functions, reward models, and the user's own Python functions.

A user's function is named by file and function, as in `my_rewards.py:polite`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean
from llm_lab.recipe.trust import Code, require_allowed

from .combine import Columns, Prompt, Rewards, Term
from .functions import FUNCTIONS

FORM = "file.py:function, as in my_rewards.py:polite"


def build_rewards(
    terms: Sequence[Mapping[str, Any]],
    *,
    device: str = "cpu",
    find_model: Callable[[str], str] = str,
    key: str = "rewards",
) -> Rewards:
    """Build the reward of a recipe's terms; loads reward models and runs the user's files.

    terms: `{name | model | python: ..., weight: ..., and the keys of the function}`, None for keys that are left out.
    find_model: returns the model folder for the name of a run. Raises UserError with the problems of all terms.
    """
    built: list[Term] = []
    problems: list[Problem | str] = []
    for index, term in enumerate(terms):
        given = {name: value for name, value in term.items() if value is not None}
        weight = float(given.pop("weight", 1.0))
        try:
            built.append(_build_term(given, weight, f"{key}.{index}", device, find_model))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return Rewards(tuple(_with_unique_names(built)))


def check_files(terms: Sequence[Mapping[str, Any]], *, key: str = "rewards") -> list[Problem | str]:
    """Return the problems of the Python files that the terms name. Reads the files but runs nothing."""
    problems: list[Problem | str] = []
    for index, term in enumerate(terms):
        if term.get("python"):
            try:
                find_function(term["python"], key=f"{key}.{index}.python")
            except UserError as error:
                problems.extend(error.problems)
    return problems


def _build_term(given: dict[str, Any], weight: float, key: str, device: str, find_model: Callable[[str], str]) -> Term:
    if "model" in given:
        from .models import load_reward_model

        name = given["model"]
        reward_model = load_reward_model(find_model(name), device=device, key=f"{key}.model")
        label = Path(name).name or name
        return Term(label, weight, f"{key}.model", lambda p, c, _: reward_model(p, c), about=reward_model.about)
    if "python" in given:
        spec = given["python"]
        call = _report_failures(load_function(spec, key=f"{key}.python"), spec, f"{key}.python")
        return Term(spec.rpartition(":")[2], weight, f"{key}.python", call, about=f"runs {spec}")
    known = FUNCTIONS[given["name"]]
    options = {option: value for option, value in given.items() if option in known.keys}

    def score(prompts: Sequence[Prompt], texts: Sequence[str], columns: Columns) -> Sequence[Any]:
        # Only the columns that the function reads: the data may have a column named `length`.
        return known.function(texts, **{name: columns[name] for name in known.columns}, **options)

    return Term(given["name"], weight, key, score, columns=known.columns, read_answer=known.read_answer)


def _report_failures(function: Callable[..., Any], spec: str, key: str) -> Callable[..., Sequence[Any]]:
    """Wrap a user's function, so that an error says at which completion it failed."""
    path = Path(spec.rpartition(":")[0]).expanduser()

    def call(prompts: Sequence[Prompt], texts: Sequence[str], columns: Columns) -> Sequence[Any]:
        # The data may have columns named prompts or completions.
        own = {name: values for name, values in columns.items() if name not in ("prompts", "completions")}
        try:
            return function(completions=list(texts), prompts=list(prompts), **own)
        except Exception as error:
            error_of_all = error
        for index, text in enumerate(texts):
            row = {name: [values[index]] for name, values in own.items()}
            try:
                function(completions=[text], prompts=[prompts[index]], **row)
            except Exception as error:
                where = f"at completion {index + 1} of {len(texts)}, {text[:80]!r}"
                raise UserError(
                    Problem(key, f"it failed {where}: {describe_error(error, path)}", value=spec)
                ) from error
        where = f"with all {len(texts)} completions, but with none of them alone"
        raise UserError(
            Problem(key, f"it failed {where}: {describe_error(error_of_all, path)}", value=spec)
        ) from error_of_all

    return call


def _with_unique_names(terms: Sequence[Term]) -> list[Term]:
    """Number terms with the same name, because each has its own column in the log."""
    counts: dict[str, int] = {}
    found = []
    for term in terms:
        counts[term.name] = counts.get(term.name, 0) + 1
        found.append(replace(term, name=f"{term.name}_{counts[term.name]}") if counts[term.name] > 1 else term)
    return found


def find_function(spec: str, *, key: str = "rewards.python") -> tuple[Path, str]:
    """Return file and function of `file.py:function`, checked without running the file.

    Raises UserError if the file is missing or is not valid Python, or has no such function at its top level.
    """
    file_name, colon, name = spec.rpartition(":")
    if not colon or not file_name.endswith(".py") or not name.isidentifier():
        raise UserError(Problem(key, "this is not a function in a file", value=spec, allowed=FORM))
    path = Path(file_name).expanduser()
    functions = functions_in(path, key=key, spec=spec)
    if name not in functions:
        known = ", ".join(functions) or "none"
        raise UserError(
            Problem(
                key,
                f"{path} has no function `{name}` at its top level",
                value=spec,
                allowed=f"its functions: {known}",
                fix=did_you_mean(name, functions),
            )
        )
    if problem := functions[name]:
        fix = f"Write it as `def {name}(completions, **columns)`, returning one number for each completion."
        raise UserError(Problem(key, problem, value=spec, fix=fix))
    return path, name


def functions_in(path: Path, *, key: str = "rewards.python", spec: str | None = None) -> dict[str, str | None]:
    """Return {function at the top level of a Python file: why it can't be a reward, or None}, without running the file.

    Raises UserError, about `spec` under `key`, if the file is missing or is not valid Python.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        why = f"the file can't be read: {error.strerror}"
        fix = f"The full path is {path.resolve()}."
        raise UserError(Problem(key, why, value=spec or str(path), fix=fix)) from None
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        why = f"{path} is not valid Python: {getattr(error, 'msg', error)}{where}"
        raise UserError(Problem(key, why, value=spec or str(path))) from None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: _signature_problem(node) for node in functions}


def _signature_problem(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Return why a function can't be called with completions and columns as keyword arguments, or None."""
    if isinstance(node, ast.AsyncFunctionDef):
        return "this function is async; a reward must be a plain function"
    arguments = node.args
    if arguments.posonlyargs:
        return "arguments are passed by name, but this function has positional-only ones"
    if arguments.kwarg is None:
        return "this function does not accept the columns of the data: add `**columns` at the end"
    if "completions" not in [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]:
        return "this function has no argument `completions`"
    return None


def load_function(spec: str, *, key: str = "rewards.python") -> Callable[..., Any]:
    """Run the file and return its function. Raises UserError if it is not found, not allowed (UntrustedCode), or fails.

    The function is called as f(completions=[...], prompts=[...], **columns) with lists of equal length. It returns a
    number for each completion, or None for completions that it does not apply to.
    """
    path, name = find_function(spec, key=key)
    source = path.read_bytes()
    require_allowed([Code(key, spec, path.resolve(), name)], source)
    module_spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path.resolve())
    assert module_spec is not None  # the file ends in .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses in the file look up their module here
    try:
        exec(compile(source, str(path.resolve()), "exec"), module.__dict__)  # exactly the bytes that were allowed
    except Exception as error:
        raise UserError(Problem(key, f"running {path} failed: {describe_error(error, path)}", value=spec)) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(Problem(key, f"after running {path}, `{name}` is not a function", value=spec))
    return function


def describe_error(error: BaseException, path: Path) -> str:
    """Return an exception in one line, with the line of the file where it occurred."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    text = (str(error).splitlines() or [""])[0][:200]
    where = f" (line {line} of {path.name})" if line else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"
