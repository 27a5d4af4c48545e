"""Greedy decoding: prefill in one place, decode there or elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from kvferry.core.errors import InternalError, InvalidArgument
from kvferry.reference_engine.config import ModelConfig, require_int
from kvferry.reference_engine.model import BlockTables, Decoder
from kvferry.reference_engine.paged_kv import PagedKV, RankKV, blocks_needed, private_kv
from kvferry.reference_engine.parallelism import Parallelism, rank_shares

DEFAULT_BLOCK_TOKENS = 16
SINGLE = Parallelism()

Blocks = Sequence[int] | BlockTables
"""A sequence's block ids by layer group, or one list for all groups."""


class NonFiniteLogits(InternalError):
    """The model computed NaN or infinity: the KV it read is not what this model wrote."""

    @classmethod
    def after(cls, position: int) -> Self:
        """An error about the logits that follow `position`."""
        return cls(
            f"logits after position {position} are not finite: the KV read is not what this model wrote",
            metadata={"position": str(position)},
        )


class ReferenceEngine:
    """A worker's model over its paged KV. It keeps no request state: a sequence is its tokens and its blocks.

    `kv` holds every rank's KV by layer group, in rank order. Block lists are in order of position, hold for
    every rank, and may be longer than needed. Calls block while they compute.

    Raises:
        InvalidArgument: `kv` or `parallelism` does not fit `config`.
    """

    def __init__(self, config: ModelConfig, kv: Sequence[RankKV], parallelism: Parallelism = SINGLE) -> None:
        self._config = config
        self._decoder = Decoder(config, kv, parallelism)
        self._kv: dict[str, PagedKV] = {group: paged for rank_kv in kv for group, paged in rank_kv.items()}

    @classmethod
    def with_private_kv(
        cls,
        config: ModelConfig,
        *,
        num_blocks: int,
        block_tokens: int = DEFAULT_BLOCK_TOKENS,
        parallelism: Parallelism = SINGLE,
        device: torch.device | str = "cpu",
    ) -> Self:
        """An engine over memory of its own, without a pool."""
        require_int("num_blocks", num_blocks, at_least=1)
        require_int("block_tokens", block_tokens, at_least=1)
        shares = rank_shares(config, parallelism)
        kv = [private_kv(config, share, num_blocks, block_tokens, torch.device(device)) for share in shares]
        return cls(config, kv, parallelism)

    def prefill(self, prompt_tokens: Sequence[int], blocks: Blocks, *, start: int = 0) -> int:
        """Compute the prompt's KV into `blocks` and return the first generated token.

        Positions before `start` are present already: only the tokens from there on (at least one) are
        computed.

        Raises:
            InvalidArgument: an empty or too long prompt, a token or `start` out of range.
            BlockError: a block id out of range or given twice, or too few blocks.
            NonFiniteLogits: the KV before `start` is not this model's.
        """
        if not prompt_tokens:
            raise InvalidArgument.of_field("prompt_tokens", prompt_tokens, "empty")
        require_int("start", start, at_least=0)
        if start >= len(prompt_tokens):
            raise InvalidArgument.of_field(
                "start", start, f"leaves nothing to compute of {len(prompt_tokens)} prompt tokens"
            )
        for index, token in enumerate(prompt_tokens):
            self._check_token(f"prompt_tokens[{index}]", token)
        tables = self._tables(blocks, len(prompt_tokens))
        return self._next_token(prompt_tokens[start:], start, tables)

    def decode(self, first_token: int, position: int, blocks: Blocks, max_new_tokens: int) -> list[int]:
        """Generate the `max_new_tokens` tokens that follow `first_token`, which itself is not in the result.

        `position` is where `first_token` goes: the number of positions present, after a prefill the prompt's
        length. KV is written at `position` to position + max_new_tokens - 1, so `blocks` must hold position +
        max_new_tokens tokens. With `max_new_tokens` 0 nothing is read or written.

        Raises:
            InvalidArgument: a token, `position` or `max_new_tokens` out of range.
            BlockError: a block id out of range or given twice, or too few blocks.
            NonFiniteLogits: the KV present is not this model's.
        """
        self._check_token("first_token", first_token)
        require_int("position", position, at_least=0)
        require_int("max_new_tokens", max_new_tokens, at_least=0)
        tables = self._tables(blocks, position + max_new_tokens)
        tokens = [first_token]
        for offset in range(max_new_tokens):
            tokens.append(self._next_token(tokens[-1:], position + offset, tables))
        return tokens[1:]

    def generate(self, prompt_tokens: Sequence[int], blocks: Blocks, max_new_tokens: int) -> list[int]:
        """Prefill and decode here: the `max_new_tokens` (at least 1) tokens that follow the prompt.

        Raises as `prefill` and `decode`, before anything is computed where the arguments are at fault.
        """
        require_int("max_new_tokens", max_new_tokens, at_least=1)
        self._tables(blocks, tokens_in_kv(len(prompt_tokens), max_new_tokens))
        first = self.prefill(prompt_tokens, blocks)
        return [first, *self.decode(first, len(prompt_tokens), blocks, max_new_tokens - 1)]

    def _next_token(self, tokens: Sequence[int], start: int, tables: BlockTables) -> int:
        logits = self._decoder.forward(tokens, start, tables)
        if not torch.isfinite(logits).all():
            raise NonFiniteLogits.after(start + len(tokens) - 1)
        return greedy_token(logits)

    def _check_token(self, field: str, token: int) -> None:
        require_int(field, token, at_least=0)
        if token >= self._config.vocab_size:
            raise InvalidArgument.of_field(field, token, f"not below vocab_size={self._config.vocab_size}")

    def _tables(self, blocks: Blocks, tokens: int) -> BlockTables:
        """Block ids by layer group, checked to hold `tokens` tokens."""
        self._config.check_tokens(tokens)
        if not isinstance(blocks, Mapping):
            for kv in self._kv.values():
                kv.check_blocks(blocks, tokens)
            return dict.fromkeys(self._kv, blocks)
        if blocks.keys() != self._kv.keys():
            raise InvalidArgument.of_field("blocks", sorted(blocks), f"the groups are {sorted(self._kv)}")
        for group, kv in self._kv.items():
            kv.check_blocks(blocks[group], tokens, f"blocks[{group}]")
        return blocks


def greedy_token(logits: torch.Tensor) -> int:
    """The lowest id among the most likely tokens of `logits` [vocab] (torch.argmax promises no order)."""
    return int((logits == logits.max()).nonzero()[0].item())


def tokens_in_kv(prompt_tokens: int, max_new_tokens: int) -> int:
    """Positions of KV that a whole generation writes: the last generated token is never fed back."""
    return prompt_tokens + max_new_tokens - 1


def generate_alone(
    config: ModelConfig,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    *,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    device: torch.device | str = "cpu",
) -> list[int]:
    """The `max_new_tokens` (at least 1) tokens after the prompt, from one rank over memory of its own.

    Builds the model anew; for many prompts use one `ReferenceEngine.with_private_kv` and its `generate`.

    Raises:
        InvalidArgument: an argument out of range.
    """
    require_int("max_new_tokens", max_new_tokens, at_least=1)
    require_int("block_tokens", block_tokens, at_least=1)
    if not prompt_tokens:
        raise InvalidArgument.of_field("prompt_tokens", prompt_tokens, "empty")
    tokens = tokens_in_kv(len(prompt_tokens), max_new_tokens)
    config.check_tokens(tokens)
    num_blocks = blocks_needed(tokens, block_tokens)
    engine = ReferenceEngine.with_private_kv(config, num_blocks=num_blocks, block_tokens=block_tokens, device=device)
    return engine.generate(prompt_tokens, range(num_blocks), max_new_tokens)
