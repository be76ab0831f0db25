"""Shell completion: a script for bash, zsh or fish, made from the parser. It is instant: it never starts Python.

Commands, options, their choices and the keys of recipes are written into the script; runs and recipes are looked up by
the shell, in checkpoints/ and configs/.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .argument_parser import Parser, commands_of
from .arguments import make_parser

RECIPES, RUNS, NAMES, FILES = "recipes", "runs", "names", "files"  # names: those of runs only
# The values of a positional argument, by its name.
KINDS = {"recipe": RECIPES, "recipe | key=a,b": "keys", "file": FILES, "text": "", "name": "", "key=value": "keys"}
KINDS |= {"key=v1,v2": "keys", **dict.fromkeys(("model", "adapter"), RUNS), "run": NAMES}


def completion_script(
    shell: str, keys: Sequence[str], recipes: Sequence[str], values: Mapping[tuple[str, str], Sequence[str]]
) -> str:
    """Return the script.

    keys: dotted keys of recipes. recipes: names of the shipped recipes. values: the values of an argument, by (command,
    argument), if the parser does not have them.
    """
    parser = make_parser()
    commands = commands_of(parser)
    for (name, argument), choices in values.items():
        next(one for one in commands[name]._actions if one.dest == argument).choices = choices
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    lines = write(_Known(commands, parser.options, " ".join(f"{key}=" for key in keys), shlex.join(recipes)))
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Known:
    """What a script completes. own: the options of llm-lab itself. keys, recipes: as shell words."""

    commands: Mapping[str, Parser]
    own: Sequence[str]
    keys: str
    recipes: str


def _options(parser: Parser) -> list[tuple[str, argparse.Action]]:
    """Return the options of a command, in their long form."""
    return [
        (text, action)
        for action in parser._actions
        for text in action.option_strings
        if text.startswith("--") and action.help != argparse.SUPPRESS
    ]


def _takes(parser: Parser) -> list[tuple[str, argparse.Action]]:
    """Return the kind of each positional argument, in order: recipes, runs, files, keys, or unknown."""
    positional = [action for action in parser._actions if not action.option_strings]
    return [(KINDS.get(str(action.metavar or action.dest), ""), action) for action in positional]


def _takes_files(action: argparse.Action) -> bool:
    return action.nargs != 0 and str(action.metavar) in ("DIR", "FILE", "PATH")


def _takes_models(action: argparse.Action) -> bool:
    return action.nargs != 0 and str(action.metavar) == "MODEL"


# --- bash


def _bash(known: _Known) -> Iterator[str]:
    yield "# Completion of llm-lab for bash. Use it now: source <(llm-lab completion bash)"
    yield "_llm_lab_runs() {"
    yield "    local file"
    yield '    for file in checkpoints/"${1%"${1##*/}"}"*/{run,sweep}.json; do'
    yield '        [[ -f $file ]] && file=${file%/*} && printf "%s\\n" "${file#checkpoints/}"'
    yield "    done"
    yield "}"
    yield "_llm_lab_recipes() {"
    yield "    local file"
    yield "    for file in configs/*.yaml; do"
    yield '        [[ -f $file ]] && file=${file##*/} && printf "%s\n" "${file%.yaml}"'
    yield "    done"
    yield f"    printf '%s\\n' {known.recipes}"
    yield "}"
    yield "_llm_lab() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= given=0 i words= kind="
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        [[ ${COMP_WORDS[i]} == -* ]] && continue"
    yield "        if [[ -z $command ]]; then command=${COMP_WORDS[i]}; else ((given++)); fi"
    yield "    done"
    yield "    COMPREPLY=()"
    yield "    if [[ -z $command ]]; then"
    yield f'        COMPREPLY=($(compgen -W "{" ".join([*known.commands, *known.own])}" -- "$cur"))'
    yield "        return"
    yield "    fi"
    yield '    case "$command $prev" in'
    for name, parser in known.commands.items():
        for option, action in _options(parser):
            if action.choices:
                yield f'        "{name} {option}") words="{" ".join(map(str, action.choices))}" ;;'
            elif _takes_models(action):
                yield f'        "{name} {option}") kind=runs ;;'
            elif _takes_files(action):
                yield f'        "{name} {option}") kind=files ;;'
            elif action.nargs != 0:
                yield f'        "{name} {option}") return ;;'
    yield "    esac"
    yield "    if [[ -z $words$kind && $cur == -* ]]; then"
    yield "        case $command in"
    for name, parser in known.commands.items():
        yield f'            {name}) words="{" ".join(option for option, _ in _options(parser))}" ;;'
    yield "        esac"
    yield "    elif [[ -z $words$kind ]]; then"
    yield '        case "$command $given" in'
    for name, parser in known.commands.items():
        takes = _takes(parser)
        for number, (kind, action) in enumerate(takes):
            many = action.nargs in ("*", "+")
            pattern = f'"{name} "*' if many and number == len(takes) - 1 else f'"{name} {number}"'
            if action.choices:
                yield f'            {pattern}) words="{" ".join(map(str, action.choices))}" ;;'
            elif kind:
                yield f"            {pattern}) kind={kind} ;;"
    yield "        esac"
    yield "    fi"
    yield "    case $kind in"
    yield '        runs|names) words="$(_llm_lab_runs "$cur")" ;;'
    yield '        recipes) words="$(_llm_lab_recipes) $(_llm_lab_runs "$cur")" ;;'
    yield f'        keys) words="{known.keys}"; compopt -o nospace 2>/dev/null ;;'
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield '    [[ $kind == keys || $kind == names || -z $kind ]] || COMPREPLY+=($(compgen -f -- "$cur"))'
    yield "}"
    yield "complete -F _llm_lab llm-lab"


# --- zsh


def _zsh(known: _Known) -> Iterator[str]:
    functions = {
        RUNS: "_llm_lab_runs",
        NAMES: "_llm_lab_names",
        RECIPES: "_llm_lab_recipes",
        FILES: "_files",
        "keys": "_llm_lab_keys",
    }
    yield "#compdef llm-lab"
    yield "# Completion of llm-lab for zsh. Use it now: source <(llm-lab completion zsh)"
    yield "_llm_lab_names() {"
    yield "    local -a found"
    yield "    found=(checkpoints/*/(run|sweep).json(N:h) checkpoints/*/*/run.json(N:h))"
    yield '    compadd -- "${found[@]#checkpoints/}"'
    yield "}"
    yield "_llm_lab_runs() { _llm_lab_names; _files }"
    yield "_llm_lab_recipes() {"
    yield "    local -a found"
    yield "    found=(configs/*.yaml(N:t:r))"
    yield f'    compadd -- "${{found[@]}}" {known.recipes}; _llm_lab_runs'
    yield "}"
    yield f"_llm_lab_keys() {{ compadd -S '' -- {known.keys} }}"
    yield "_llm_lab() {"
    yield "    local -a commands"
    yield "    commands=("
    for name, parser in known.commands.items():
        yield f"        {_quoted(name + ':' + str(parser.description))}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then"
    yield f"        _describe command commands; compadd -- {' '.join(known.own)}"
    yield "        return"
    yield "    fi"
    yield "    local command=$words[2]"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $command in"
    for name, parser in known.commands.items():
        specs = [_zsh_option(option, action, functions) for option, action in _options(parser)]
        for number, (kind, action) in enumerate(_takes(parser), 1):
            what = f"({' '.join(map(str, action.choices))})" if action.choices else functions.get(kind, "")
            place = "*" if action.nargs in ("*", "+") else number
            specs.append(f"{place}:{_plain(str(action.metavar or action.dest))}:{what}")
        yield f"        {name}) _arguments {' '.join(map(_quoted, specs))} ;;"
    yield "    esac"
    yield "}"
    yield 'if [[ $funcstack[1] == _llm_lab ]]; then _llm_lab "$@"; else compdef _llm_lab llm-lab; fi'


def _zsh_option(option: str, action: argparse.Action, functions: Mapping[str, str]) -> str:
    text = f"{option}[{_plain(action.help or '')}]"
    if action.nargs == 0:
        return text
    what = f"({' '.join(map(str, action.choices))})" if action.choices else ""
    what = what or (functions[RUNS] if _takes_models(action) else functions[FILES] if _takes_files(action) else "")
    return f"{text}:{_plain(str(action.metavar or 'value'))}:{what}"


def _plain(text: str) -> str:
    """Return a text without the characters that separate the parts of a specification in zsh."""
    return text.replace("[", "(").replace("]", ")").replace(":", ",")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish


def _fish(known: _Known) -> Iterator[str]:
    yield "# Completion of llm-lab for fish. Use it now: llm-lab completion fish | source"
    yield "function __llm_lab_runs"
    yield "    for file in checkpoints/*/run.json checkpoints/*/sweep.json checkpoints/*/*/run.json"
    yield "        string replace -r '^checkpoints/(.*)/[a-z]+\\.json$' '$1' -- $file"
    yield "    end"
    yield "end"
    yield "function __llm_lab_recipes"
    yield "    for file in configs/*.yaml"
    yield "        string replace -r '^configs/(.*)\\.yaml$' '$1' -- $file"
    yield "    end"
    yield f"    printf '%s\\n' {known.recipes}"
    yield "    __llm_lab_runs"
    yield "end"
    yield "complete -c llm-lab -e"
    for name, parser in known.commands.items():
        about = _quoted(str(parser.description))
        yield f"complete -c llm-lab -f -n __fish_use_subcommand -a {name} -d {about}"
        when = f"-n '__fish_seen_subcommand_from {name}'"
        for option, action in _options(parser):
            line = f"complete -c llm-lab {when} -l {option[2:]} -d {_quoted(action.help or '')}"
            if action.choices:
                line += f" -x -a '{' '.join(map(str, action.choices))}'"
            elif _takes_models(action):
                line += " -r -a '(__llm_lab_runs)'"
            elif action.nargs != 0:
                line += " -r"
            yield line
        for kind, action in _takes(parser):
            if action.choices:
                yield f"complete -c llm-lab {when} -f -a '{' '.join(map(str, action.choices))}'"
            elif kind in (RUNS, RECIPES, NAMES):
                files, name = (" -f", RUNS) if kind == NAMES else ("", kind)
                yield f"complete -c llm-lab {when}{files} -a '(__llm_lab_{name})'"
            elif kind == "keys":
                yield f"complete -c llm-lab {when} -f -a '{known.keys}'"
    for option in known.own:
        yield f"complete -c llm-lab -f -n __fish_use_subcommand -l {option[2:]}"
