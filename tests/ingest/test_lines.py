"""A line is an event, or says what is wrong with it."""

import pytest

from mfalcon.errors import InvalidInput
from mfalcon.ingest.lines import LineReader, Row
from mfalcon.item_ids import item_id

READER = LineReader({"view": 0, "like": 2}, frozenset({"session"}))


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'{"user_id":"ann","item_id":50,"time_ms":7}', Row("ann", 50, 0, 0.0, 7)),
        (b'{"user_id":7,"item_id":-50,"time_ms":7,"actions":5,"value":2}\n', Row("7", -50, 5, 2.0, 7)),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":"like"}', Row("a", 1, 4, 0.0, 7)),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":["like","view"],"session":{}}', Row("a", 1, 5, 0.0, 7)),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":[]}', Row("a", 1, 0, 0.0, 7)),
        (b'{"user_id":"a","item_id":"sku-1","time_ms":7}', Row("a", item_id("sku-1"), 0, 0.0, 7)),
        (b'{"user_id":"a","item_id":"-7","time_ms":7}', Row("a", -7, 0, 0.0, 7)),
    ],
)
def test_fields_are_those_of_the_wire(line: bytes, row: Row) -> None:
    assert READER.read(line) == row


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line: got '{', must be JSON"),
        (b"\xff\xfe", "line: got"),
        (b"7", "line: got '7', must be a JSON object"),
        (b"[" * 100_000, "line: got"),
        (b'{"item_id":1,"time_ms":7}', "user_id: got None"),
        (b'{"user_id":"","item_id":1,"time_ms":7}', "user_id: got ''"),
        (b'{"user_id":true,"item_id":1,"time_ms":7}', "user_id: got True"),
        (b'{"user_id":"a","item_id":1.5,"time_ms":7}', "item_id: got 1.5, must be an integer, or text"),
        (b'{"user_id":"a","item_id":"","time_ms":7}', "item_id: got '', must be 1 to 256 bytes of UTF-8"),
        (b'{"user_id":"a","item_id":"%s","time_ms":7}' % (b"x" * 257), "item_id: got 'xxxx"),
        (b'{"user_id":"a","item_id":"a\\u0000","time_ms":7}', "item_id: got 'a\\x00'"),
        (b'{"user_id":"a","item_id":9223372036854775808,"time_ms":7}', "item_id: got 9223372036854775808"),
        (b'{"user_id":"a","item_id":1,"time_ms":7.5}', "time_ms: got 7.5"),
        (b'{"user_id":"a","item_id":1,"time_ms":0}', "time_ms: got 0"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":-1}', "actions: got -1"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":4294967296}', "actions: got 4294967296"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":"buy"}', "actions: got 'buy', must be actions of the"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":[1]}', "actions: got 1"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"actions":null}', "actions: got None"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"value":"4"}', "value: got '4'"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"value":true}', "value: got True"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"value":NaN}', "line: got"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"value":-1e39}', "value: got -1e+39"),
        (b'{"user_id":"a","item_id":1,"time_ms":7,"valeu":4}', "field: got 'valeu', must be one of user_id"),
    ],
)
def test_what_is_no_event_is_named(line: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        READER.read(line)
    assert str(refused.value).startswith(says)
    assert len(str(refused.value)) < 400
