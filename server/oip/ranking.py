"""Inference by the one handler: what a question of either transport is answered."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mfalcon.text_ids import TextIds, compiled_hash
from mfalcon.types import ModelInfo, RankRequest
from server.handler import Handler
from server.limits import Limits
from server.oip.answer import Answer, answer_of, check_outputs, check_version
from server.oip.question import Question, check_head, rank_request, time_left_of

MAX_BYTES_ON_THE_LOOP: Final = 2**16
"""What is larger is read in a thread beside the event loop."""


class TensorRanking:
    """What a transport asks. Lives on its event loop."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self._handler = handler
        self._limits = limits
        self._text_ids = TextIds(compiled_hash())
        self._thread = ThreadPoolExecutor(1, "mfalcon-oip")
        # Started now: one that is started when there is no memory left may never come up.
        self._thread.submit(int).result()

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return self._handler.ready

    def is_ready(self, model: str, version: str) -> bool:
        """The same of a model. Raises UnknownModel for one that is not served."""
        if not self._handler.ready:
            return False
        self.model(model, version)
        return True

    def model(self, name: str, version: str) -> ModelInfo:
        """A served model. Raises UnknownModel."""
        info = self._handler.model(name)
        check_version(version, info.version)
        return info

    async def infer(self, read: Callable[[], Question], num_bytes: int, time_left: float | None) -> Answer:
        """The answer to a question of so many bytes. read: makes it of what has come. time_left: what the transport's
        caller grants, in seconds. Raises what `Handler.rank` does.
        """

        def asked() -> tuple[Question, RankRequest]:
            question = read()
            check_head(question)
            return question, rank_request(question, self._limits, self._text_ids)

        if num_bytes <= MAX_BYTES_ON_THE_LOOP:
            question, request = asked()
        else:
            question, request = await asyncio.get_running_loop().run_in_executor(self._thread, asked)
        info = self.model(question.model, question.version)
        check_outputs(question, info)
        result = await self._handler.rank(request, question.model, time_left_of(question, time_left))
        check_version(question.version, result.model_version)  # it may have been exchanged meanwhile
        return answer_of(question, info.name, result)
