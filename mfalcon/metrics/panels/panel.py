"""A row of the dashboard, and what makes its queries."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how Grafana names what it gives."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """title, tells: what it shows, and how to read it. unit: one of Grafana's. stacked: areas that add up. red_from:
    from where on a number is bad; None if it never is.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    tells: str = ""
    stacked: bool = False
    red_from: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """are_numbers: the last values as large figures, six beside each other, and no charts."""

    title: str
    panels: tuple[Panel, ...]
    are_numbers: bool = False


def quantiles(metric: str, by: str, where: str, legend: str, of: tuple[float, ...]) -> tuple[Query, ...]:
    """Quantiles `of` a histogram. by: labels to tell apart. where: which series. legend: behind the name of each."""
    sums = f"sum by (le{', ' + by if by else ''})"
    return tuple(
        Query(
            f"histogram_quantile({q:g}, {sums} (rate({metric}_bucket{{{where}}}[@rate])))",
            f"p{round(100 * q)}{' ' + legend if legend else ''}",
        )
        for q in of
    )
