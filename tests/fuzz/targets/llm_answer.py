"""Any bytes as what a language model's service answers when it is asked for an order."""

import orjson

from mfalcon.rerank.language_model import Skipped, said
from mfalcon.rerank.prompt import NoPermutation, permutation

NUM_CANDIDATES = 3


def seeds() -> list[bytes]:
    """Orders in JSON, in a fence, as a list; a refusal."""
    texts = ('{"order": [2, 1, 3]}', '```json\n{"order": [3, 2, 1]}\n```', "[1, 2, 3]", "I cannot do that")
    answers = [{"choices": [{"message": {"content": text}, "finish_reason": "stop"}]} for text in texts]
    refusal = {"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "content_filter"}]}
    return [orjson.dumps(answer) for answer in (*answers, refusal)] + [text.encode() for text in texts]


def target(data: bytes) -> None:
    """A permutation, or one of the two refusals; the text of an answer is tried by itself too."""
    for text in (said_in(data), data.decode("utf-8", "replace")):
        try:
            order = permutation(text, NUM_CANDIDATES)
        except NoPermutation:
            continue
        assert sorted(order) == list(range(1, NUM_CANDIDATES + 1))


def said_in(data: bytes) -> str:
    """The text of an answer, empty without one."""
    try:
        return said(data)
    except Skipped:
        return ""
