"""The training file that a data set has by default, as TOML: to paste, and to change."""

import json

from mfalcon.train.dataset import Dataset
from mfalcon.train.description import action_counts, actions_line
from mfalcon.train.sequences import labels


def proposal(dataset: Dataset) -> str:
    """The tasks and the blend of a data set, with their rates: what `mfalcon train --config` takes."""
    lines = [
        "# What to learn: a task is a label of every event; [blend] weighs the tasks in the one score that ranks.",
        f"# actions: {_printable(actions_line(dataset))}",
    ]
    if len(dataset.actions) > 1:
        exposure = _printable(next(iter(action_counts(dataset))))
        lines.append(f"# {exposure} is the most frequent, so it is taken for the mere exposure and is no task here.")
    truth = labels(dataset, dataset.tasks)
    for task, label in zip(dataset.tasks, truth.T, strict=True):
        lines += ["", "[[tasks]]", f"name = {_text(task.name)}", f"kind = {_text(task.kind)}"]
        if task.any_action:
            lines.append(f"any_action = [{', '.join(map(_text, task.any_action))}]  # {label.mean():.2%} of events")
        elif task.value_at_least is not None:
            lines.append(f"value_at_least = {task.value_at_least!r}  # {label.mean():.2%} of events")
        else:
            lines += [f"loss_weight = {task.loss_weight!r}", f"center = {task.center!r}  # the mean of the value"]
    lines += ["", "[blend]", *(f"{name} = {weight!r}" for name, weight in dataset.blend.items())]
    return "\n".join(lines)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _text(text: str) -> str:
    """A basic string of TOML, which JSON's are but for the character DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
