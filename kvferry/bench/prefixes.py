"""Which leading tokens of a request a destination has already, from requests before it."""

from collections.abc import Iterable

from kvferry.bench.trace_file import HASHED_TOKENS, TraceRequest


class SeenPrefixes:
    """Every prefix that has arrived, as if the destination never evicted any."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def learn(self, hash_ids: Iterable[int]) -> None:
        """A request with these ids has arrived."""
        self._seen.update(hash_ids)

    def first_token(self, request: TraceRequest, tokens_per_block: int) -> int:
        """How many leading tokens of a request are present, in whole blocks; the last token never is.

        An engine computes at least the last token itself, and so does not begin behind it.
        """
        present = 0
        for hash_id in request.hash_ids:
            if hash_id not in self._seen:
                break
            present += HASHED_TOKENS
        present = min(present, request.input_tokens - 1)
        return present // tokens_per_block * tokens_per_block
