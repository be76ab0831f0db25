"""The screen above a question: the title, and the numbers that follow from the answers so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_lab.estimate.formatting import count, plural, size

from .console import clear_screen, is_plain, make_console, one_line

if TYPE_CHECKING:
    from llm_lab.recipe.resolve import Resolved


BESIDE_NUMBERS = 12  # columns of the names and of the space after them


def begin_screen(title: str, where: str = "") -> Any:
    """Clear the terminal, print the title line if there is a title, and return the console."""
    console = make_console()
    clear_screen(console)
    if title:
        from rich.text import Text

        from .prompt_layout import fit_words

        room = console.width - len(f"LLM Lab · {one_line(title)} ·  ─")
        where = f" · {fit_words(one_line(where), room)}" if where else ""
        if is_plain():  # nothing was cleared; another screen is above
            console.print()
        heading = Text.assemble(("LLM Lab", "title"), f" · {one_line(title)}", (where, "dim"))
        console.rule(heading, align="left", style="dim")
    return console


def print_design_numbers(console: Any, resolved: Resolved | None) -> None:
    """Print the numbers of a design: parameters by part, memory, FLOPs per token, what can load it."""
    from rich.table import Table
    from rich.text import Text

    from llm_lab.estimate.compatibility import what_loads

    from .prompt_layout import wrapped

    if resolved is None or resolved.shape is None:
        console.print("No estimates: some of the values don't fit together.", style="dim")
        return
    shape, cost, model = resolved.shape, resolved.estimate, resolved.values["model"]
    parts = shape.parameters_by_part
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    shares = ", ".join(
        f"{part} {count(number)} ({100 * number / shape.parameters:.0f} %)"
        for part, number in sorted(parts.items(), key=lambda item: -item[1])
        if number * 200 > shape.parameters
    )
    state = sum(cost.memory_by_part[part] for part in ("weights", "gradients", "optimizer"))
    flops = shape.training_flops_per_token(resolved.values["train"]["max_length"])
    train = resolved.values["train"]
    batch = f"{train['per_device_train_batch_size']} × {train['max_length']:,} tokens"
    memory = f"{size(cost.memory_bytes)} with a batch of {batch} (model and optimizer {size(state)})"
    # The most important come first, because a low screen shows only the first lines.
    total = shape.describe_parameters()
    text = Text(wrapped(f"{total}: {shares}", max(20, console.width - BESIDE_NUMBERS)))
    text.stylize("bold", 0, len(total))
    table.add_row("parameters", text)
    table.add_row("training", f"{memory}, {count(flops)}FLOPs per token")
    if "hidden_size" in model:
        loads = what_loads(model)
        table.add_row("saved as", Text(loads.native_reason, style="good" if loads.architecture else "warn"))
        table.add_row("GGUF", Text(loads.gguf_reason, style="good" if loads.gguf else "warn"))
        table.add_row(
            "shape",
            f"{model['num_hidden_layers']} layers × {model['hidden_size']}, {model['num_attention_heads']} heads "
            f"({model['num_key_value_heads']} KV) of {model['head_dim']}, feed-forward {model['intermediate_size']}, "
            f"context {model['max_position_embeddings']:,}",
        )
    table.add_row(
        "generating", f"{size(4 * shape.parameters)} + {shape.cache_bytes_per_token():,} bytes per token of context"
    )
    console.print(table)


def print_run_numbers(console: Any, resolved: Resolved | None, *, about: bool = True, curve: bool = True) -> None:
    """Print the numbers of a run: parameters, tokens, memory, time, and the learning-rate curve.

    about: begin with what the stage does. curve: whether there is room for the curve; plain mode has none.
    """
    from rich.text import Text

    from llm_lab.estimate.formatting import about as about_time
    from llm_lab.optim.schedule import factor_of
    from llm_lab.recipe.registry import STAGES

    from .frame import draw_curve
    from .prompt_layout import wrapped

    if resolved is None:
        console.print("No estimates: some of the values don't fit together.", style="dim")
        return
    values, cost = resolved.values, resolved.estimate
    if about:
        console.print(Text(STAGES[values["stage"]].about, style="dim"))
    train = values.get("train")
    if train is None:
        return
    parameters = f"{count(cost.parameters)} parameters, " if cost.parameters else ""
    needs = [f"{size(cost.memory_bytes)} of memory"] if cost.memory_bytes else []
    needs += [about_time(cost.wall_seconds)] if cost.wall_seconds else []
    if needs and resolved.is_upper_estimate:
        console.print(Text(f"{parameters}{_length(values, cost)}"))
        at_most = (
            f"at most {' and '.join(needs).replace('about ', '')} with full sequences; the plan measures your data"
        )
        console.print(Text(wrapped(at_most, console.width)))
    else:
        console.print(Text(", ".join([f"{parameters}{_length(values, cost)}", *needs])))
    if not cost.fits:
        console.print(Text("This does not fit in memory.", style="bad"))
    if not curve:
        return
    schedule, optimizer, steps = values["scheduler"], values["optimizer"], train["max_steps"]
    if steps is None:  # the steps depend on the number of examples
        label = f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}, {schedule['name']}"
        console.print(Text(one_line(label), style="dim"))
        return
    if is_plain():
        return
    label = f"Learning rate over {steps:,} steps, as a share of its peak, {optimizer['learning_rate']:g}"
    console.print(Text(one_line(f"{label} ({optimizer['name']}, {schedule['name']})"), style="dim"))
    updates = sorted({*range(0, steps, max(1, steps // 120)), steps - 1})
    factor = factor_of(schedule, steps)
    points = [(update + 1.0, factor(update)) for update in updates]
    for line in draw_curve(points, min(60, console.width), 3):
        console.print(Text(line, style="dim"))


def _length(values: dict[str, Any], cost: Any) -> str:
    from llm_lab.recipe.registry import STAGES

    train, steps = values["train"], values["train"]["max_steps"]
    if steps is None:
        return f"{plural(train['num_train_epochs'], 'epoch')}, batch size {train['per_device_train_batch_size']}"
    if STAGES[values["stage"]].from_scratch:
        return f"{steps:,} steps = {count(cost.tokens)} tokens"
    rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    return f"{steps:,} steps, batch size {rows:,}"
