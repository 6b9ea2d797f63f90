"""A topic of Kafka into a server: each event once, whoever of the group dies. The broker is librdkafka's own mock, on a
socket of loopback.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from mfalcon.errors import CallFailed, ConfigError, DataError
from mfalcon.ingest.kafka import KafkaOptions, KafkaTopic, settings_of
from mfalcon.ingest.lines import LineReader
from mfalcon.ingest.sender import Pace, Sender
from mfalcon.ingest.topic import Counts, TopicOptions, ingest_topic
from mfalcon_client import AsyncClient, Retry
from tests.ingest.test_ingest import ACTIONS, Log
from tests.server.harness import Served, serving_engine

TOPIC = "clicks"
SOON = {"session.timeout.ms": "5000", "heartbeat.interval.ms": "1000"}
"""The mock forgets a member that leaves only when its session ends, and lets three seconds pass before a first one."""


class Broker:
    """A mock cluster of one broker, which lives as long as its producer."""

    def __init__(self) -> None:
        settings = {"test.mock.num.brokers": 1, "bootstrap.servers": "none", "log_level": 0}
        self._producer = Producer(settings)
        (broker,) = self._producer.list_topics(timeout=10).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def produce(self, partition: int, values: Sequence[bytes]) -> None:
        """Messages at the end of a partition."""
        for value in values:
            self._producer.produce(TOPIC, value=value, partition=partition)
        assert self._producer.flush(10) == 0

    def committed(self, group: str, partition: int) -> tuple[int, str]:
        """Offset and metadata."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": group})
        (place,) = consumer.committed([TopicPartition(TOPIC, partition)], timeout=10)
        consumer.close()
        return place.offset, place.metadata or ""


@pytest.fixture
def broker() -> Iterator[Broker]:
    yield Broker()


@pytest.fixture
async def served() -> AsyncIterator[Served[Log]]:
    async with serving_engine(Log()) as running:
        yield running


def messages(numbers: Sequence[int], num_users: int = 5) -> list[bytes]:
    return [orjson.dumps({"user_id": f"u{n % num_users}", "item_id": n, "time_ms": 1_000 + n}) for n in numbers]


def expected(numbers: Sequence[int], num_users: int = 5) -> dict[str, list[int]]:
    return {f"u{user}": [n for n in numbers if n % num_users == user] for user in range(num_users)}


async def send(
    broker: Broker, served: Served[Log], rejects: Path | None = None, settings: Mapping[str, str] = SOON, **options: Any
) -> Counts:
    topic = KafkaTopic(KafkaOptions(broker.address, TOPIC, "g", settings, linger_s=0.05, **options))
    try:
        async with AsyncClient(served.addresses.grpc, timeout_s=10.0, retry=Retry(attempts=1)) as client:
            sender = Sender(client, Pace())
            wanted = TopicOptions(rejects=rejects, to_end=True, late_events="insert")
            return await ingest_topic(topic, LineReader(ACTIONS), sender, wanted, asyncio.Event())
    finally:
        await asyncio.to_thread(topic.close)


async def test_a_topic_is_read_to_its_end_and_on(broker: Broker, served: Served[Log]) -> None:
    broker.produce(0, messages(range(0, 300, 2)))
    broker.produce(1, messages(range(1, 300, 2)))
    assert (await send(broker, served, window_events=40)).num_events == 300
    assert {user: sorted(items) for user, items in served.engine.written().items()} == expected(range(300))
    assert broker.committed("g", 0) == (150, "")
    broker.produce(0, [b"", *messages([300, 301, 302, 303, 304])])
    assert (await send(broker, served)).num_events == 5
    assert {user: sorted(items) for user, items in served.engine.written().items()} == expected(range(305))


async def test_a_window_that_was_on_its_way_is_sent_again_as_it_was(broker: Broker, served: Served[Log]) -> None:
    """Whoever had the partition died when half of it was written; since then there is more."""
    broker.produce(0, messages(range(20)))
    served.engine.damaged = {"u3"}
    with pytest.raises(DataError, match=r"clicks\[0\]@3: DATA_LOSS.*--rejects"):
        await send(broker, served)
    assert broker.committed("g", 0) == (0, "sending:20")
    served.engine.damaged = set()
    broker.produce(0, messages(range(20, 50)))
    assert (await send(broker, served, window_events=1_000)).num_events == 50
    assert served.engine.written() == expected(range(50))


async def test_messages_that_cannot_be_taken_are_left_out_and_told(
    broker: Broker, served: Served[Log], tmp_path: Path
) -> None:
    good = messages(range(10))
    broker.produce(0, [*good[:4], b"\xff nonsense", *good[4:]])
    done = await send(broker, served, tmp_path / "rejects")
    assert done == Counts(10, 1)
    (told,) = (tmp_path / "rejects").read_bytes().splitlines()
    assert orjson.loads(told)["place"] == "clicks[0]@4"
    assert served.engine.written() == expected(range(10))


async def test_who_is_told_to_stop_finishes_what_is_on_its_way(broker: Broker, served: Served[Log]) -> None:
    broker.produce(0, messages(range(10)))
    topic, stop = KafkaTopic(KafkaOptions(broker.address, TOPIC, "g", linger_s=0.05)), asyncio.Event()
    async with AsyncClient(served.addresses.grpc) as client:
        sending = ingest_topic(topic, LineReader(ACTIONS), Sender(client, Pace()), TopicOptions(), stop)
        task = asyncio.create_task(sending)
        give_up = time.monotonic() + 60
        while served.engine.written() != expected(range(10)) and time.monotonic() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stop.set()
        assert (await task).num_events == 10
    await asyncio.to_thread(topic.close)
    assert broker.committed("g", 0) == (10, "")


async def test_a_topic_that_is_not_there_and_settings_that_are_wrong_are_named(
    broker: Broker, served: Served[Log]
) -> None:
    with pytest.raises(ConfigError, match=r"must not have enable\.auto\.commit"):
        KafkaTopic(KafkaOptions(broker.address, TOPIC, "g", {"enable.auto.commit": "true"}))
    with pytest.raises(ConfigError, match=r"no\.such\.setting"):
        KafkaTopic(KafkaOptions(broker.address, TOPIC, "g", {"no.such.setting": "1"}))
    with pytest.raises(CallFailed, match="Kafka: "):
        await send(broker, served, settings={"topic.metadata.propagation.max.ms": "0"})


def test_a_file_of_settings_tells_nothing_of_a_line_that_is_wrong() -> None:
    assert settings_of("# a\n\nsasl.username = ann\nsasl.password=a=b\n", "f") == {
        "sasl.username": "ann",
        "sasl.password": "a=b",
    }
    with pytest.raises(ConfigError, match=r"f:2: must be key=value") as refused:
        settings_of("a=b\nsecret", "f")
    assert "secret" not in str(refused.value)
