"""Who may be merged with whom: every refusal names two members and what they differ in."""

from dataclasses import replace

import pytest

from mfalcon.errors import ConfigError
from mfalcon.merging.agreement import Contract, check_agreement
from mfalcon.types import ContextFeatureInfo, TaskInfo

TASKS = (TaskInfo("like", "binary", 1.0), TaskInfo("rating", "regression", 0.05))
SURFACE = ContextFeatureInfo("surface", 3, (), derived=False)
HOUR = ContextFeatureInfo("hour", 24, (), derived=True)
ONE = Contract(TASKS, ("click", "like"), (SURFACE,))


def test_features_that_only_some_read_are_fine() -> None:
    check_agreement({"a": ONE, "b": replace(ONE, context=(HOUR,)), "c": replace(ONE, context=(HOUR, SURFACE))})


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(ONE, tasks=TASKS[:1]), "tasks"),
        (replace(ONE, tasks=TASKS[::-1]), "tasks"),
        (replace(ONE, tasks=(TASKS[0], TaskInfo("rating", "binary", 0.05))), r"rating \(binary, blend 0.05\)"),
        (replace(ONE, tasks=(TASKS[0], TaskInfo("rating", "regression", 0.1))), "blend 0.1"),
        (replace(ONE, actions=("like", "click")), "actions must be the same, in order; got click, like and like"),
        (replace(ONE, context=(HOUR, replace(SURFACE, num_values=4))), "surface has 3 and 4 values"),
        (replace(ONE, context=(replace(SURFACE, values=("a", "b", "c")),)), "other names"),
    ],
)
def test_what_differs_is_named_with_both(other: Contract, what: str) -> None:
    with pytest.raises(ConfigError, match=f"second and third cannot be merged.*{what}|{what}") as refused:
        check_agreement({"first": ONE, "second": ONE, "third": other})
    assert "third" in str(refused.value)
