"""What PromQL asks for, by a parser: metrics, labels, and the values with which it compares labels. It needs no
Prometheus.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from promql_parser import AggregateExpr, Expr, MatchOp, VectorSelector, parse, walk


@dataclass(frozen=True, slots=True)
class Selected:
    """A metric that a query selects, and what it compares with its labels: each alternative of an expression alone."""

    metric: str
    compared: tuple[tuple[str, str], ...]


def selected(query: str) -> Iterator[Selected]:
    """Each selection of a query. Raises ValueError where it is no PromQL."""
    for node in _nodes(query):
        if isinstance(node, VectorSelector):
            compared = (
                (matcher.name, value)
                for matcher in node.matchers.matchers
                for value in _alternatives(matcher.op, matcher.value)
            )
            yield Selected(node.name or "", tuple(compared))


def grouped(query: str) -> Iterator[str]:
    """The labels by which a query aggregates."""
    for node in _nodes(query):
        if isinstance(node, AggregateExpr) and node.modifier is not None:
            yield from node.modifier.labels


def _alternatives(op: MatchOp, value: str) -> list[str]:
    return value.split("|") if op in (MatchOp.Re, MatchOp.NotRe) else [value]


def _nodes(query: str) -> list[Expr]:
    nodes: list[Expr] = []

    def visit(node: Expr) -> bool:
        nodes.append(node)
        return True

    walk(parse(query), visit)
    return nodes
