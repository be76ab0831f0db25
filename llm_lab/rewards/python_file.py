"""A reward function of the user's own, named by file and function: `my_rewards.py:polite`."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean

FORM = "file.py:function, as in my_rewards.py:polite"


def find_function(spec: str, *, key: str = "rewards.python") -> tuple[Path, str]:
    """Return file and function of `file.py:function` after a look at the file, which is not run.

    UserError where the file is missing or no Python, or has no such function at its top level.
    """
    file_name, colon, name = spec.rpartition(":")
    if not colon or not file_name.endswith(".py") or not name.isidentifier():
        raise UserError(Problem(key, "this names no function in a file", value=spec, allowed=FORM))
    path = Path(file_name).expanduser()
    try:
        source = path.read_bytes()
    except OSError as error:
        why = f"the file can't be read: {error.strerror}"
        raise UserError(Problem(key, why, value=spec, fix=f"It is looked for at {path.resolve()}.")) from None
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        where = f" in line {error.lineno}" if getattr(error, "lineno", None) else ""
        why = f"{path} is no Python that can be read: {getattr(error, 'msg', error)}{where}"
        raise UserError(Problem(key, why, value=spec)) from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
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
    problem = _signature_problem(functions[name])
    if problem:
        fix = f"Write it as `def {name}(completions, **columns)`, returning one number for each completion."
        raise UserError(Problem(key, problem, value=spec, fix=fix))
    return path, name


def _signature_problem(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Say what keeps a function from being called with completions and columns by name."""
    if isinstance(node, ast.AsyncFunctionDef):
        return "this function is async; a reward is a plain function"
    arguments = node.args
    if arguments.posonlyargs:
        return "arguments are given by name, and this function has some without a name"
    if arguments.kwarg is None:
        return "this function does not take the data's columns: it needs `**columns` at the end"
    if "completions" not in [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]:
        return "this function has no argument `completions`"
    return None


def load_function(spec: str, *, key: str = "rewards.python") -> Callable[..., Any]:
    """Run the file and return its function. UserError where it is not found, or the file fails.

    The function is called as f(completions=[...], prompts=[...], **columns) with lists of equal length; it
    returns a number for each completion, or None where it has nothing to say.
    """
    path, name = find_function(spec, key=key)
    module_spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path.resolve())
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses in the file look for their module there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(Problem(key, f"running {path} failed: {describe(error, path)}", value=spec)) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(Problem(key, f"`{name}` is no function any more once {path} has run", value=spec))
    return function


def describe(error: BaseException, path: Path) -> str:
    """Return an exception in one line, with the last line of the file that it passed."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = trace.tb_lineno
        trace = trace.tb_next
    text = (str(error).splitlines() or [""])[0][:200]
    where = f" (line {line} of {path.name})" if line else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"
