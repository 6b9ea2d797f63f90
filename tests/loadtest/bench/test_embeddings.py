"""The benchmarks of tables in megabytes measure what they say, and their bars are read off the right figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.cpu.library import available
from loadtest.bench import embedding_quality, embeddings
from loadtest.bench.embedding_quality import ALL, IDS, MIX, MODULO, PLAIN, EmbeddingQualityOptions, EmbeddingQualityRow
from loadtest.bench.embeddings import EmbeddingOptions
from loadtest.report.result import as_json
from loadtest.report.table import as_text
from mfalcon.train.synthetic import synthetic

DATASET = synthetic(num_users=60, num_items=40, events_per_user=20, seed=0)


@pytest.mark.skipif(not available(), reason="no kernel is compiled")
def test_lookups_are_timed_and_the_bars_are_there() -> None:
    options = EmbeddingOptions(ids=10**6, dim=20, memory_mb=0.1, block=8, rows=(7, 10_000), plain_rows=50, rounds=2)
    result = embeddings.run(options, lambda _: None)
    assert [(cell.way, cell.rows) for cell in result.cells if cell.rows == 7] == [
        *((f"{name}, {how}", 7) for name in ("robe-v0", "robe-mix") for how in ("fused", "definition")),
        ("plain table of 0 MB", 7),
    ]
    assert result.virtual_parameters == 20_000_000 and result.compression == 800
    assert [bar.limit for bar in result.bars] == [30, 5e6, 0.3]
    assert all(bar.value is not None for bar in result.bars)
    assert "800 to 1" in as_text(embeddings.page(result))
    assert json.loads(as_json(result))["benchmark"] == "embeddings"


def test_every_table_of_a_size_takes_as_many_bytes() -> None:
    options = EmbeddingQualityOptions(compressions=(1, 4), block=8)
    variants = list(embedding_quality.variants(DATASET, options))
    assert len(variants) == 10 and len({variant.name for variant in variants}) == 10
    for variant in variants:
        config = variant.config
        rows = 41 // variant.compression
        shared = config.shared
        numbers = config.num_items * config.dim if shared is None else shared.num_numbers
        assert numbers == rows * config.dim
        assert (config.counters is None) == (not config.side_features) == (variant.inputs == IDS)


def test_modulo_and_frequent_items_keep_what_they_say() -> None:
    options = EmbeddingQualityOptions(compressions=(4,))
    by_kind = {variant.kind: variant for variant in embedding_quality.variants(DATASET, options)}
    modulo = by_kind[MODULO].dataset
    assert np.array_equal(modulo.events["item_id"], DATASET.events["item_id"] % 9)
    assert modulo.items.item_id.tolist() == list(range(9))
    kept = by_kind[PLAIN].dataset.items.item_id
    counts = {item: int(np.sum(DATASET.events["item_id"] == item)) for item in DATASET.items.item_id.tolist()}
    least = min(counts[item] for item in kept.tolist())
    assert len(kept) == 9 and sum(count > 2 * least for count in counts.values()) <= 9  # counted on the training events


def test_bars_are_of_medians() -> None:
    def row(inputs: str, kind: str, compression: int, *auc: float) -> EmbeddingQualityRow:
        return EmbeddingQualityRow(inputs, kind, compression, 8, auc, auc, None)

    rows = [
        row(IDS, MIX, 10, 0.744, 0.746, 0.9),
        row(IDS, MIX, 100, 0.70, 0.73, 0.72),
        row(IDS, PLAIN, 100, 0.71, 0.71, 0.71),
        row(IDS, MODULO, 100, 0.73, 0.73, 0.73),
        row(ALL, PLAIN, 1, 0.775, 0.775, 0.775),
        row(ALL, MIX, 100, 0.771, 0.771, 0.7715),
    ]
    assert [bar.verdict for bar in embedding_quality.bars(rows)] == ["yes", "yes", "NO", "NO"]
    assert [bar.verdict for bar in embedding_quality.bars([])] == ["-"] * 4


@pytest.mark.thorough
def test_all_are_trained_once_and_evaluated(tmp_path: Path) -> None:
    dataset, options = replace(DATASET, name="small"), EmbeddingQualityOptions(compressions=(4,), seeds=1)
    result = embedding_quality.run(dataset, options, tmp_path, lambda _: None)
    assert [row.kind for row in result.rows] == [PLAIN, MODULO, MIX, "robe-v0", MIX]
    assert {row.table_bytes for row in result.rows if row.inputs == IDS} == {10 * 32 * 4}
    again = embedding_quality.run(dataset, options, tmp_path, lambda _: None)
    assert [row.auc for row in again.rows] == [row.auc for row in result.rows]
    assert "1/4" in as_text(embedding_quality.page(result))
