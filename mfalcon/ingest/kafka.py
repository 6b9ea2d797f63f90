"""Topics of Kafka as windows, one partition's each. A place is an offset.

How far a partition is acknowledged is Kafka's own commit of its consumer group, whose metadata says where the window
ends that is being sent. So whoever goes on, after a crash or a rebalance, sends that window again as it was.
"""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from mfalcon.errors import CallFailed, ConfigError

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_ASK_S = 30.0
_SENDING = re.compile(r"sending:([0-9]{1,18})")
OURS: Final[Mapping[str, bool]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
}
"""Settings of a consumer that nobody else may choose: by these every event is written once."""
_HOPELESS = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
)
"""Errors that waiting does not end."""
_LOST = (KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS)
"""What a commit is told when another member of the group has the partition now."""


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """settings: further ones of librdkafka, for TLS and passwords say. window_events: of a partition's window, at most.
    linger_s: how long events wait for more before their window is sent.
    """

    brokers: str
    topic: str
    group: str
    settings: Mapping[str, str] = field(default_factory=dict)
    window_events: int = 10_000
    linger_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """The messages of a partition from one offset to another. messages: offset and value of each."""

    topic: str
    partition: int
    begin: int
    end: int
    messages: list[tuple[int, bytes]]

    @property
    def stream(self) -> str:
        """The name of its stream."""
        return f"{self.topic}[{self.partition}]"


@dataclass(slots=True)
class _Partition:
    """acknowledged: the offset behind that, None before the first message of a new group. sending: where the window
    ends that was being sent when somebody else had the partition; 0 if none was. since: when the first message that
    waits has come. at_end: there are no more messages now.
    """

    acknowledged: int | None
    sending: int
    messages: list[tuple[int, bytes]] = field(default_factory=list)
    since: float = 0.0
    at_end: bool = False

    def window(self, most: int, linger_s: float) -> tuple[int, int] | None:
        """Begin and end of the next window, None while it is not whole."""
        if not self.messages:
            return None
        begin = self.messages[0][0] if self.acknowledged is None else self.acknowledged
        last = self.messages[min(most, len(self.messages)) - 1][0]
        if self.sending > begin:
            return (begin, self.sending) if self.at_end or self.messages[-1][0] >= self.sending - 1 else None
        if len(self.messages) < most and time.monotonic() - self.since < linger_s:
            return None
        return begin, last + 1

    def take(self, end: int) -> list[tuple[int, bytes]]:
        """The messages before an offset, which wait no longer."""
        taken = [each for each in self.messages if each[0] < end]
        self.messages, self.since = self.messages[len(taken) :], time.monotonic()
        return taken


class KafkaTopic:
    """A member of a consumer group. Its calls block, and are made from one thread at a time."""

    def __init__(self, options: KafkaOptions) -> None:
        """Raises ConfigError for settings that librdkafka refuses, or that are not to be chosen."""
        if taken := sorted(OURS.keys() & options.settings.keys()):
            raise ConfigError(f"--config: must not have {taken[0]}: by that every event is written once")
        settings: dict[str, Any] = {
            "bootstrap.servers": options.brokers,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            **options.settings,
            **OURS,
        }
        self._options = options
        self._partitions: dict[int, _Partition] = {}
        self._is_assigned = False
        self._failed: KafkaException | None = None
        try:
            self._consumer = Consumer(settings, logger=_log)
        except (KafkaException, TypeError, ValueError) as error:
            raise ConfigError(f"--config: {_text(error)}") from error
        self._consumer.subscribe([options.topic], on_assign=self._assigned, on_revoke=self._revoked)

    @property
    def is_done(self) -> bool:
        """Whether nothing waits, and every partition of ours has been read to its end."""
        return self._is_assigned and all(each.at_end and not each.messages for each in self._partitions.values())

    def next(self) -> Batch | None:
        """The next window that is whole, committed as being sent; None if none is after a fifth of a second. Raises
        CallFailed.
        """
        self._poll()
        for number, partition in tuple(self._partitions.items()):
            window = partition.window(self._options.window_events, self._options.linger_s)
            if window is not None:
                begin, end = window
                batch = Batch(self._options.topic, number, begin, end, partition.take(end))
                if self._commit(number, begin, f"sending:{end}"):
                    return batch
                self._partitions.pop(number, None)  # it comes again by `_assigned`, if it does
        return None

    def acknowledge(self, batch: Batch) -> None:
        """All of it is in the log. Raises CallFailed."""
        if self._commit(batch.partition, batch.end, "") and (partition := self._partitions.get(batch.partition)):
            partition.acknowledged, partition.sending = batch.end, 0

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _poll(self) -> None:
        waiting = sum(len(each.messages) for each in self._partitions.values())
        try:
            messages = self._consumer.consume(max(1, self._options.window_events - waiting), _POLL_S)
        except (KafkaException, RuntimeError) as error:
            raise CallFailed("UNAVAILABLE", f"Kafka: {_text(error)}") from error
        if self._failed is not None:
            raise CallFailed("UNAVAILABLE", f"Kafka: {_text(self._failed)}")
        for message in messages:
            self._keep(message)

    def _keep(self, message: Message) -> None:
        error, partition = message.error(), self._partitions.get(message.partition() or 0)
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.fatal() or error.code() in _HOPELESS:
                raise CallFailed("UNAVAILABLE", f"Kafka: {error.str()}")
            _log.warning("Kafka: %s", error.str())
            return
        if partition is None:
            return
        partition.at_end = error is not None
        offset = message.offset()
        if error is None and offset is not None:
            if not partition.messages:
                partition.since = time.monotonic()
            partition.messages.append((offset, bytes(message.value() or b"")))

    def _commit(self, number: int, offset: int, metadata: str) -> bool:
        """Whether the partition is still ours: else another member sends the window that was on its way again."""
        place = TopicPartition(self._options.topic, number, offset, metadata)
        try:
            self._consumer.commit(offsets=[place], asynchronous=False)
        except KafkaException as error:
            if isinstance(error.args[0], KafkaError) and error.args[0].code() in _LOST:
                return False
            raise CallFailed("UNAVAILABLE", f"Kafka: {_text(error)}") from error
        return True

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        try:
            committed = consumer.committed(places, timeout=_ASK_S)
        except KafkaException as error:  # raised here it would be lost in librdkafka
            self._failed = error
            return
        self._is_assigned = True
        for place in committed:
            told = _SENDING.fullmatch(place.metadata or "")
            known = place.offset if place.offset >= 0 else None
            self._partitions[place.partition] = _Partition(known, int(told[1]) if told else 0)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        for place in places:
            self._partitions.pop(place.partition, None)


def settings_of(text: str, name: str) -> dict[str, str]:
    """Lines of `key=value`, as in Kafka's own property files. Raises ConfigError, which tells no line: it may hold a
    password.
    """
    settings = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, separator, value = line.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--config: {name}:{number}: must be key=value")
        settings[key.strip()] = value.strip()
    return settings


def _text(error: BaseException) -> str:
    told = error.args[0] if error.args else error
    return told.str() if isinstance(told, KafkaError) else str(told)
