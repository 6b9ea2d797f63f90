"""Metrics of tasks as a table for a person."""

import math
from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mfalcon.train.evaluate import RegressionReport, Report


def report_table(title: str, reports: Sequence[Report | RegressionReport]) -> Table:
    """Reports as rows, task by task; what is no metric of a task's kind stays empty. 80 columns hold every figure."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    words = ("task", "scorer", "visibility")
    for name in (*words, "rows", "AUC", "NE", "GAUC", "NDCG@10", "RMSE", "MAE"):
        is_word = name in words
        justify: Literal["left", "right"] = "left" if is_word else "right"
        table.add_column(name, justify=justify, no_wrap=not is_word, overflow="fold" if is_word else "ellipsis")
    order = list(dict.fromkeys(r.task for r in reports))
    for r in sorted(reports, key=lambda r: order.index(r.task)):
        match r:
            case Report():
                figures = [
                    "" if math.isnan(value) else f"{value:.4f}" for value in (r.auc, r.ne, r.gauc, r.ndcg_at_10)
                ] + ["", ""]
            case RegressionReport():
                figures = ["", "", "", "", f"{r.rmse:.4f}", f"{r.mae:.4f}"]
        table.add_row(r.task, r.scorer, r.visibility or "", f"{r.num_rows:,}", *figures)
    return table
