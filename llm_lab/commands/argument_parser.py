"""The arguments of every command, and what is said about wrong ones. Imports nothing but argparse: help is instant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llm_lab import __version__
from llm_lab.errors import Problem, UserError, did_you_mean, one_of

PRESETS = "learning-rate, lora-rank, optimizer, position-embedding, seeds"  # a test compares them
MODEL = "a run, a Hugging Face folder, a GGUF file, or a name on the Hub"
RECIPE = "a recipe's name or file, or a run"
GROUPS = {
    "Train": ("new", "run", "sweep", "duel", "merge", "replay"),
    "Recipes": ("check", "xray", "copy", "schema"),
    "Models": ("chat", "show", "eval", "compare", "look", "export", "design"),
    "Runs": ("list", "rm", "mv", "gc"),
    "The lab": ("study", "web", "doctor", "completion"),
}
PLAIN = "lines only, without frames, colors and redrawing, for screen readers (or LLM_LAB_PLAIN=1)"
# What other programs call a command.
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
# What argparse says about a value, and what we say.
NOT_OF_A_TYPE = {"int": "it is not a whole number", "float": "it is not a number"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors, and whose help keeps the lines of the examples."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        """UserError with what argparse found wrong, in our words."""
        raise UserError(self._problem(message))

    def _problem(self, message: str) -> Problem:
        how = f"`{self.prog} --help` shows its arguments."
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

    def format_help(self) -> str:
        """Return the help; its usage names the arguments in the order in which one writes them."""
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
    """Return what argparse may call an argument."""
    return {"/".join(action.option_strings), *action.option_strings, str(action.metavar), action.dest}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command; `command` is the place of its function. UserError where they are invalid."""
    parser = make_parser()
    commands = commands_of(parser)
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in commands:
        meant = f"That is `llm-lab {SAID_ELSEWHERE[name]}`." if name in SAID_ELSEWHERE else did_you_mean(name, commands)
        fix = meant or "`llm-lab --help` lists the commands."
        raise UserError(Problem(f"llm-lab {name}", "there is no such command", fix=fix))
    arguments, rest = parser.parse_known_args(words)
    # argparse takes all key=value arguments or none: those after an option (run R --resume a=1) are left over.
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        raise UserError(_unknown(rest[0], commands[name] if name else parser))
    return arguments


def _unknown(word: str, parser: Parser) -> Problem:
    """Return the problem with an argument that a command does not have."""
    how = f"`{parser.prog} --help` shows its arguments."
    if not word.startswith("-"):
        return Problem(parser.prog, "one argument too many", word, fix=how)
    option = word.partition("=")[0]
    return Problem(option, f"`{parser.prog}` has no such option", fix=did_you_mean(option, parser.options) or how)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """Return the parser of each command, by name."""
    return next(dict(one.choices) for one in parser._actions if isinstance(one, argparse._SubParsersAction))


def make_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="llm-lab", add_help=False, usage="llm-lab [command] [options]")
    parser.add_argument("-h", "--help", action=_ShowHelp, nargs=0, help="show this help and exit")
    parser.add_argument("--version", action="version", version=f"llm-lab {__version__}", help="show the version")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--plain", action="store_true", help=PLAIN)
    parser.set_defaults(command="wizard_commands.open_wizard", json=False)
    commands = _Commands(parser.add_subparsers(prog="llm-lab", metavar="command", parser_class=Parser))
    for add in (
        *(_new, _run, _sweep, _duel, _merge, _replay),
        *(_check, _xray, _copy, _schema),
        *(_chat, _show, _eval, _compare, _look, _export, _design),
        *(_list, _rm, _mv, _gc),
        *(_study, _web, _doctor, _completion),
    ):
        add(commands)
    return parser


class _ShowHelp(argparse.Action):
    """Prints the commands in groups, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> NoReturn:
        print("\n".join(_overview(parser)))  # noqa: T201
        parser.exit()


def _overview(parser: argparse.ArgumentParser) -> Iterator[str]:
    import shutil
    import textwrap

    width = max(40, shutil.get_terminal_size().columns - 1)
    about = {choice.dest: choice.help or "" for choice in parser._subparsers._group_actions[0]._choices_actions}  # type: ignore[union-attr]
    options = {"-h, --help": "show this help", "--version": "show the version", "--debug": "show tracebacks"}
    options["--plain"] = PLAIN
    yield "usage: llm-lab [command] [options]\n"
    text = "Build a language model from parts, train it, evaluate it, chat with it, export it."
    yield textwrap.fill(f"{text} Without a command, the wizard opens.", width)
    rows = {group: {name: about[name] for name in names} for group, names in GROUPS.items()}
    for group, lines in {**rows, "Options": options}.items():
        yield f"\n{group}"
        for name, what in lines.items():
            yield textwrap.fill(what, width, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
    yield "\n`llm-lab COMMAND --help` shows the arguments of a command, with examples."


class _Commands:
    """Adds commands to a parser."""

    def __init__(self, subparsers: Any):
        self._subparsers = subparsers
        self._common = argparse.ArgumentParser(add_help=False)
        self._common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        self._common.add_argument("--plain", action="store_true", default=argparse.SUPPRESS, help=PLAIN)

    def add(self, name: str, about: str, does: str, *examples: str, more: str = "") -> Parser:
        """Return the parser of a new command.

        about: one sentence, without capital letter and full stop. does: module.function in llm_lab.commands. examples:
        without llm-lab. more: what else its help says.
        """
        description = f"{about[0].upper()}{about[1:]}.{' ' if more else ''}{more}"
        epilog = "\n".join(["examples:", *(f"  llm-lab {example}" for example in examples)])
        parser = self._subparsers.add_parser(
            name, help=about, description=description, epilog=epilog, parents=[self._common]
        )
        parser.set_defaults(command=does)
        return parser


def _run(commands: _Commands) -> None:
    parser = commands.add(
        "run",
        "run a recipe",
        "recipe_commands.run_recipe",
        "run stories",
        "run my.yaml train.max_steps=500 --dry-run",
    )
    _recipe_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan without running it")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument(
        "--resume-from", type=int, metavar="STEP", help="resume from the checkpoint of an earlier step; 0 is the start"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run of the same name")
    _trust_recipe_argument(parser)
    parser.add_argument("--nproc", type=int, metavar="N", help="train with N processes, one per GPU")
    _json_argument(parser)


def _new(commands: _Commands) -> None:
    parser = commands.add(
        "new",
        "set up a run in the wizard, or write its recipe",
        "wizard_commands.new_recipe",
        "new pretrain",
        "new sft model.checkpoint=stories data.0.path=chats.jsonl --out chats.yaml",
        more="In a terminal it opens the wizard at the stage, with the given values. With --out it writes a recipe and "
        "asks nothing; without a terminal it prints the recipe.",
    )
    parser.add_argument("stage", help="pretrain, sft, reward, dpo, grpo, ppo, merge, eval or export")
    _override_argument(parser, "data.0.path=my-text.txt")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the recipe to this new file")


def _design(commands: _Commands) -> None:
    parser = commands.add(
        "design",
        "design a model from parts in the wizard, or write its config",
        "wizard_commands.new_design",
        "design",
        "design hidden_size=128 num_hidden_layers=4 --out configs/models/small",
    )
    _override_argument(parser, "num_hidden_layers=4")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write config.json to this new folder, without asking")


def _completion(commands: _Commands) -> None:
    parser = commands.add(
        "completion",
        "print a script that completes commands, options, recipes and runs in a shell",
        "machine_commands.print_completion",
        "completion bash > ~/.local/share/bash-completion/completions/llm-lab",
        "completion zsh > ~/.zfunc/_llm-lab",
        more="fish reads it from ~/.config/fish/completions/llm-lab.fish.",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def _check(commands: _Commands) -> None:
    parser = commands.add(
        "check",
        "validate a recipe, listing every problem",
        "recipe_commands.check_recipe",
        "check my.yaml",
        "check demo device=cpu",
    )
    _recipe_arguments(parser)
    _json_argument(parser)


def _xray(commands: _Commands) -> None:
    parser = commands.add(
        "xray",
        "show a recipe's data token by token: trained or masked",
        "recipe_commands.xray_recipe",
        "xray demo",
        "xray my.yaml --examples 5",
    )
    _recipe_arguments(parser)
    parser.add_argument("--examples", type=int, default=2, metavar="N", help="examples to show per dataset (default 2)")
    _json_argument(parser)


def _copy(commands: _Commands) -> None:
    parser = commands.add(
        "copy",
        "copy a recipe to a new file, to edit it",
        "recipe_commands.copy_recipe",
        "copy stories my.yaml",
        "copy checkpoints/stories again.yaml",
    )
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument("file", type=Path, help="the new file")


def _schema(commands: _Commands) -> None:
    commands.add(
        "schema",
        "print the JSON Schema of recipes, for editors",
        "machine_commands.print_schema",
        "schema > recipe.schema.json",
        "schema | jq .title",
    )


def _list(commands: _Commands) -> None:
    parser = commands.add(
        "list",
        "list recipes, data, models, parts or runs",
        "housekeeping_commands.list_things",
        "list runs --stage sft --sort result",
        "list recipes",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="kind",
        choices=("recipes", "data", "models", "parts", "runs"),
        help="recipes, data, models, parts or runs; default: all",
    )
    parser.add_argument("text", nargs="?", help="only runs with this in their name or stage")
    parser.add_argument("--stage", metavar="NAME", help="only runs of this stage: pretrain, sft, pipeline, sweep ...")
    parser.add_argument("--status", metavar="NAME", help="only runs that are done, running, stopped, failed ...")
    sorts = ("age", "name", "stage", "status", "size", "disk", "result")
    parser.add_argument("--sort", choices=sorts, default="age", help="order of the runs (default: the newest first)")
    parser.add_argument("--all", action="store_true", help="also the runs inside pipelines, sweeps and studies")
    _json_argument(parser)


def _rm(commands: _Commands) -> None:
    parser = commands.add(
        "rm",
        "delete runs, after showing how large they are and what depends on them",
        "housekeeping_commands.remove_runs",
        "rm stories-2",
        "rm stories-2 old-sweep --dry-run",
    )
    parser.add_argument("runs", nargs="+", metavar="run", help="a run, a pipeline or its stage, a sweep, a study")
    parser.add_argument("--dry-run", action="store_true", help="show what would be deleted, without deleting it")
    parser.add_argument("--yes", action="store_true", help="delete without asking")


def _mv(commands: _Commands) -> None:
    parser = commands.add(
        "mv",
        "rename a run; runs made from it, adapters and recipes follow",
        "housekeeping_commands.rename",
        "mv stories-2 stories-long",
        "mv sweep rates",
    )
    parser.add_argument("run", help="a run, a pipeline, a sweep or a study")
    parser.add_argument("name", help="its new name")


def _gc(commands: _Commands) -> None:
    parser = commands.add(
        "gc",
        "free disk space: old checkpoints, half-written files, caches",
        "housekeeping_commands.collect_garbage",
        "gc --dry-run",
        "gc stories --keep 1",
        more="Of each run it keeps the first checkpoint, the last two and those in between as "
        "train.save_total_limit does, and every checkpoint that another run was made from. Models are never deleted.",
    )
    parser.add_argument("runs", nargs="*", metavar="run", help="only these runs; default: all, and the caches")
    parser.add_argument("--keep", type=int, metavar="N", help="checkpoints to keep of each run (default 4)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be deleted, with the bytes of each")
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    _json_argument(parser)


def _show(commands: _Commands) -> None:
    parser = commands.add(
        "show",
        "show what a run or model is and how it was made",
        "model_commands.show_checkpoint",
        "show stories",
        "show checkpoints/demo/sft",
    )
    parser.add_argument("path", metavar="model", help="a run, one of its checkpoints, or a Hugging Face folder")
    _json_argument(parser)


def _chat(commands: _Commands) -> None:
    parser = commands.add(
        "chat",
        "chat with a model",
        "model_commands.chat",
        "chat stories",
        'chat demo --prompt "What is your name?" --temperature 0',
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    parser.add_argument("--prompt", metavar="TEXT", help="reply to this prompt and exit")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt, for a model that was trained to chat")
    _sampling_arguments(parser)
    parser.add_argument("--top-p", type=float, metavar="X", help="sample from the top tokens up to this probability")
    parser.add_argument("--top-k", type=int, metavar="N", help="sample from the N most likely tokens; 0: off")
    parser.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: repeated tokens are less likely; 1: off"
    )
    _model_arguments(parser)


def _merge(commands: _Commands) -> None:
    parser = commands.add(
        "merge",
        "merge a LoRA adapter into its base",
        "model_commands.merge",
        "merge my-lora",
        "merge my-lora --out models/merged",
    )
    parser.add_argument("adapter", help="a run that trained an adapter, or a folder with an adapter")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new run in checkpoints/")
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="maximum difference of logits, relative to their size"
    )


def _eval(commands: _Commands) -> None:
    parser = commands.add(
        "eval",
        "evaluate a model: loss on texts, scored outputs, speed, tasks",
        "model_commands.evaluate",
        "eval stories",
        "eval stories --data my-text.txt --prompts builtin:word-sums",
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    _override_argument(parser, "eval.max_tokens=500")
    _measure_arguments(parser)
    parser.add_argument("--tasks", metavar="NAMES", help="lm-evaluation-harness tasks or YAML files, comma-separated")
    parser.add_argument("--limit", type=int, metavar="N", help="maximum number of documents per task")
    _model_arguments(parser)
    _trust_recipe_argument(parser)
    _json_argument(parser)


def _compare(commands: _Commands) -> None:
    parser = commands.add(
        "compare",
        "compare models on the same prompts and data",
        "model_commands.compare_models",
        'compare stories gpt2 --prompt "Once upon a time"',
        "compare stories --steps",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="model", help=MODEL)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="prompt for every model; can be repeated")
    _measure_arguments(parser)
    parser.add_argument("--steps", action="store_true", help="compare all saved checkpoints of one run")
    parser.add_argument(
        "--adapter-off", action="store_true", help="also compare with the base model, without the adapter"
    )
    _sampling_arguments(parser)
    _model_arguments(parser)
    parser.add_argument(
        "--trust-code-of",
        action="append",
        default=[],
        metavar="MODEL",
        help="run the code that comes with this model; can be repeated",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the comparison to a .md or .json file")
    _json_argument(parser)


def _export(commands: _Commands) -> None:
    parser = commands.add(
        "export",
        "export a model to Hugging Face, GGUF or a Space and verify it",
        "model_commands.export",
        "export stories --to gguf --weights q8_0",
        "export stories --push me/stories --author 'Ada Lovelace' --license apache-2.0",
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    _override_argument(parser, "export.weights=q8_0")
    parser.add_argument("--to", choices=("hf", "gguf", "space"), help="the format (default hf)")
    parser.add_argument("--weights", choices=("f32", "f16", "bf16", "q8_0"), help="type of the stored weights")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new run in checkpoints/")
    parser.add_argument("--push", metavar="OWNER/NAME", help="push to this Hub repository")
    parser.add_argument("--public", action="store_true", help="create the repository as public")
    parser.add_argument("--author", metavar="NAME", help="for the model cards; kept, so given once")
    parser.add_argument("--license", metavar="ID", help="for the model cards, such as apache-2.0 or mit; kept")
    parser.add_argument("--intended-use", metavar="TEXT", help="for the card of this model; kept")
    parser.add_argument("--limitations", metavar="TEXT", help="for the card of this model; kept")
    parser.add_argument(
        "--dry-run", action="store_true", help="show compatibility and the files, without writing anything"
    )
    _trust_argument(parser)


def _replay(commands: _Commands) -> None:
    parser = commands.add(
        "replay",
        "train a model again: its run and all runs it was built from",
        "recipe_commands.replay",
        "replay demo/sft",
        "replay stories --name stories-again --dry-run",
    )
    parser.add_argument("checkpoint", metavar="model", help="a run, its name, or its model's folder")
    parser.add_argument("--name", metavar="NAME", help="name of the new run (default <name>-replay)")
    parser.add_argument("--dry-run", action="store_true", help="write the recipe and show its plan, without running it")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted replay")
    _trust_recipe_argument(parser)


def _look(commands: _Commands) -> None:
    parser = commands.add(
        "look",
        "look inside a model: attention, heads, residual stream, logit lens",
        "study_commands.look",
        'look stories --prompt "The cat sat on the mat."',
        "look demo/sft --against demo/pretrain",
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    parser.add_argument("--against", metavar="MODEL", help="compare with this model, such as the base of a tuned one")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="the text that the model reads")
    text.add_argument("--prompt-file", type=Path, metavar="FILE", help="a file with the text")
    parser.add_argument("--steps", action="store_true", help="also follow the heads over all checkpoints of the run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: look/ in the run's folder")
    _model_arguments(parser)


def _sweep(commands: _Commands) -> None:
    parser = commands.add(
        "sweep",
        "run a recipe for several values of its keys, with the same seeds, and compare",
        "study_commands.sweep",
        "sweep stories optimizer.learning_rate=0.001,0.003 --seeds 3",
        "sweep my.yaml --preset optimizer --dry-run",
    )
    _compared_arguments(
        parser,
        "key=v1,v2",
        "keys to compare, each with its values, for example optimizer.learning_rate=0.001,0.003; key=value "
        "changes the recipe for all; a comma inside [], {} or quotes belongs to its value",
    )
    parser.add_argument("--preset", metavar="NAME", help=f"a grid derived from the recipe: {PRESETS}")
    _json_argument(parser)


def _duel(commands: _Commands) -> None:
    parser = commands.add(
        "duel",
        "compare two recipes with the same seeds, and say whether one is better",
        "study_commands.duel",
        "duel stories optimizer.name=adamw,muon --seeds 3",
        "duel a.yaml b.yaml --by time",
    )
    _compared_arguments(
        parser,
        "recipe | key=a,b",
        "the second recipe, or a key with two values; key=value changes the recipe for both",
    )
    parser.add_argument(
        "--by", choices=("tokens", "time", "both"), default="both", help="what is held equal (default both)"
    )
    _json_argument(parser)


def _compared_arguments(parser: Parser, metavar: str, what: str) -> None:
    """Add what sweeps and duels have in common."""
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument("overrides", nargs="*", default=[], metavar=metavar, help=what)
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each configuration: seed, seed + 1, ...")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; they share the cores")
    parser.add_argument("--measure", metavar="NAME", help="the result to compare by; default: the held-out one")
    parser.add_argument("--name", metavar="NAME", help="name of its folder in checkpoints/; the same name continues it")
    parser.add_argument("--dry-run", action="store_true", help="check all recipes and show the plan only")
    parser.add_argument("--retry-failed", action="store_true", help="also run again what failed before")
    _trust_recipe_argument(parser)


def _study(commands: _Commands) -> None:
    parser = commands.add(
        "study",
        "run an experiment that explains itself; without a name, list them",
        "study_commands.study",
        "study",
        "study attention --dry-run",
    )
    parser.add_argument("name", nargs="?", help="an experiment's name; default: list all")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="options of the experiment to change"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what it does and its options, without running it")
    parser.add_argument("--overwrite", action="store_true", help="replace the study of the same name")
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)  # the process that a study runs in
    _json_argument(parser)


def _web(commands: _Commands) -> None:
    parser = commands.add(
        "web",
        "open the lab in the browser of this machine",
        "machine_commands.serve_web",
        "web",
        "web --port 8000",
    )
    parser.add_argument("--port", type=int, metavar="N", help="port of the page; default: the first free from 7750 on")


def _doctor(commands: _Commands) -> None:
    parser = commands.add(
        "doctor", "show what this machine can do", "machine_commands.examine_machine", "doctor", "doctor --debug"
    )
    _json_argument(parser)


def _recipe_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", help=RECIPE)
    _override_argument(parser, "train.max_steps=500")


def _override_argument(parser: Parser, example: str) -> None:
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"recipe keys to change, for example {example}"
    )


def _measure_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--data", action="append", metavar="PATH", help="dataset of texts to measure the loss on; can be repeated"
    )
    parser.add_argument("--prompts", metavar="PATH", help="dataset of prompts; the outputs are scored")


def _sampling_arguments(parser: Parser) -> None:
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of an output, in tokens")
    parser.add_argument("--temperature", type=float, metavar="X", help="sampling temperature; 0: greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed; the same seed gives the same output")


def _model_arguments(parser: Parser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the model runs")
    _trust_argument(parser)


def _trust_recipe_argument(parser: Parser) -> None:
    text = "allow the reward functions and task files named in the recipe of a run folder"
    parser.add_argument("--trust-recipe", action="store_true", help=text)


def _json_argument(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document; all else to standard error")


def _trust_argument(parser: Parser) -> None:
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
