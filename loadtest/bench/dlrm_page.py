"""What `mfalcon bench dlrm` prints: a DLRM and the generative rankers of so many times its FLOPs."""

from collections.abc import Iterator, Sequence

from loadtest.bench.dlrm_pairs import RANKERS, Pair
from loadtest.bench.dlrm_ratio import LEAST_OF_PEAK, Ratio, RatioResult, RatioRow
from loadtest.bench.floor import score_work
from loadtest.report.result import as_ms, bar_table, headline
from loadtest.report.table import Part, Table

NOTES = (
    "FLOPs: of the matrix products of one forward for one (user, candidate), nothing shared; the paper does not say "
    "what its complexity counts. The history's length n follows from the ratio",
    "DLRM: DIN over the last events, DCN-V2, MMoE, two tasks; its user's side is computed once a request, its first "
    "layers are split. cold: the history is encoded in every request, from event ids on. hit: its state is kept",
    "times: the DLRM's time over the ranker's, the median (least-most) of rounds in which all take turns; each at its "
    "own best microbatch (b_m), found at this number of candidates in this run",
    "counted: m F_dlrm / (F_prefill(n) + m F_score(n)) with F_dlrm as above; as served: with the FLOPs that the split "
    "DLRM computes",
    "of peak: F_dlrm m over its time and the probed peak of matrix products; in parentheses with the FLOPs that the "
    "split DLRM computes. of floor: the ranker's counted FLOPs and SiLUs at their peaks (docs/benchmarks.md) over its "
    "time",
    "breaks even: the share of the peak at which the split DLRM, by what it computes, would be served at the ranker's "
    "cold rate; above 100% none is",
)


def page(result: RatioResult) -> Iterator[Part]:
    """What is compared, who is how fast, the bars, and what each word means."""
    yield headline(result.machine, result.commit)
    options = result.options
    yield (
        f"{options.dtype}, {result.clock} of {options.rounds} rounds; probed peak {result.peak_flops / 1e9:,.0f} "
        f"GFLOP/s ({result.peak_by}); ranker on {result.backend}, DLRM on {result.dlrm_backend}"
    )
    for complaint in result.complaints:
        yield f"No claim: {complaint}"
    low = [row for row in result.rows if not row.claims]
    if low:
        names = ", ".join(f"{row.pair.dlrm} at m={row.m:,} {row.of_peak:.0%}" for row in _once(low))
        yield f"No claim where the DLRM is below {LEAST_OF_PEAK:.0%} of the probed peak: {names}"
    yield Table(
        f"Models of which one has {options.ratio:g} times the FLOPs of the other",
        ("DLRM", "MFLOPs", "as served", "ranker", "n", "GFLOPs", "ratio", "with a state, MFLOPs"),
        [_of_pair(pair) for pair in result.pairs],
    )
    columns = (
        *("DLRM", "ranker", "m", "cold, times", "counted", "as served", "hit, times", "counted", "as served"),
        *("wall, cold and hit", "breaks even"),
    )
    yield Table("The ranker's rate over the DLRM's", columns, [_of_ratio(row, result) for row in result.rows])
    timed = ("DLRM", "ranker", "m", "b_m", "DLRM ms", "cold ms", "hit ms", "DLRM of peak", "cold, hit of floor")
    yield Table(f"Each request, ms of {result.clock}", timed, [_of_time(row) for row in result.rows])
    yield bar_table(result.bars)
    yield "\n".join(f"- {note}" for note in NOTES)


def _once(rows: Sequence[RatioRow]) -> list[RatioRow]:
    """One of each DLRM and number of candidates."""
    return list({(row.pair.dlrm, row.m): row for row in rows}.values())


def _of_pair(pair: Pair) -> tuple[str, ...]:
    known = (pair.dlrm, f"{pair.dlrm_flops / 1e6:.2f}", f"{pair.served_flops / 1e6:.2f}", pair.shape)
    if pair.refused:
        return (*known, "refused: " + pair.refused, "-", "-", "-")
    cached = score_work(RANKERS[pair.shape], pair.n, 1).flops
    gflops, ratio = f"{pair.ranker_flops / 1e9:.2f}", f"{pair.ratio:.1f}"
    return (*known, f"{pair.n:,}", gflops, ratio, f"{cached / 1e6:.2f}")


def _of_ratio(row: RatioRow, result: RatioResult) -> tuple[str, ...]:
    claims = row.claims and not result.complaints

    def told(ratio: Ratio) -> tuple[str, ...]:
        measured = f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f})" if claims else "no claim"
        return measured, f"{ratio.counted:.2f}", f"{ratio.counted_served:.2f}"

    walls = f"{row.cold.wall:.2f}, {row.hit.wall:.2f}" if claims else "no claim"
    where = (row.pair.dlrm, row.pair.shape, f"{row.m:,}")
    return (*where, *told(row.cold), *told(row.hit), walls, f"{row.breaks_even:.0%}")


def _of_time(row: RatioRow) -> tuple[str, ...]:
    floors = [("-" if share is None else f"{share:.0%}") for share in (row.cold_of_floor, row.hit_of_floor)]
    return (
        *(row.pair.dlrm, row.pair.shape, f"{row.m:,}", f"{row.dlrm_microbatch}, {row.ranker_microbatch}"),
        *(as_ms(times.clock) for times in (row.dlrm, row.ranker_cold, row.ranker_hit)),
        *(f"{row.of_peak:.0%} ({row.computed_of_peak:.0%})", ", ".join(floors)),
    )
