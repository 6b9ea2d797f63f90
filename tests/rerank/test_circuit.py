"""The breaker by hand: when it opens, whom it lets through, how long it waits."""

from mfalcon.rerank.circuit import FIRST_PAUSE_S, LONGEST_PAUSE_S, NUM_FAILURES, Circuit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Circuit:
    circuit = Circuit(clock)
    ends = []
    for _ in range(NUM_FAILURES):
        assert circuit.may_call()
        ends.append(circuit.failed())
    assert ends == [False] * (NUM_FAILURES - 1) + [True]
    return circuit


def test_failures_in_a_row_open_it() -> None:
    circuit = Circuit(Clock())
    for _ in range(3 * NUM_FAILURES):
        for _ in range(NUM_FAILURES - 1):
            assert not circuit.failed()
        circuit.succeeded()
    assert circuit.may_call() and not circuit.is_open


def test_after_a_pause_one_goes_and_its_answer_lets_all_go() -> None:
    circuit = opened(clock := Clock())
    assert not circuit.may_call()
    clock.now += FIRST_PAUSE_S
    assert circuit.may_call() and not circuit.may_call()
    circuit.succeeded()
    assert circuit.may_call() and circuit.may_call()


def test_a_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    circuit, pause = opened(clock := Clock()), FIRST_PAUSE_S
    for _ in range(10):
        clock.now += pause - 0.01
        assert not circuit.may_call()
        clock.now += 0.02
        assert circuit.may_call()
        assert not circuit.failed()
        pause = min(LONGEST_PAUSE_S, 2 * pause)
    assert pause == LONGEST_PAUSE_S


def test_those_under_way_when_it_opens_prolong_nothing() -> None:
    circuit = opened(clock := Clock())
    clock.now += FIRST_PAUSE_S / 2
    circuit.failed()
    clock.now += FIRST_PAUSE_S / 2
    assert circuit.may_call()


def test_a_probe_that_is_abandoned_makes_way_for_the_next() -> None:
    circuit = opened(clock := Clock())
    clock.now += FIRST_PAUSE_S
    assert circuit.may_call()
    circuit.abandoned()
    assert circuit.may_call()
