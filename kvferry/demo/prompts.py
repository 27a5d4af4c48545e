"""What the demo asks: prompts of many lengths, cut from the project's own documents, one token per byte."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from kvferry.core.errors import InvalidArgument

PROMPT_TOKENS_MIN = 16
PROMPT_TOKENS_MAX = 2_000
# Neighbours in length are far apart in time, so that long and short prompts overlap.
_ORDER_STEP = 7
_DOCUMENTS = ("README.md", "ARCHITECTURE.md")


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its id and its prompt."""

    request_id: str
    prompt_tokens: tuple[int, ...]


def make_requests(count: int) -> list[Request]:
    """``count`` requests, their prompts of 16 to 2,000 tokens in geometric steps, each from another place.

    Raises:
        InvalidArgument: ``count`` is not 1 to 1,000.
    """
    if not 1 <= count <= 1_000:
        raise InvalidArgument.of_field("requests", count, "must be 1 to 1000")
    text = document_text()
    lengths = prompt_lengths(count)
    starts = [index * (len(text) - PROMPT_TOKENS_MAX) // count for index in range(count)]
    return [
        Request(f"demo-{index:03d}", tuple(text[start : start + length]))
        for index, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def prompt_lengths(count: int) -> list[int]:
    """Lengths in tokens, from the shortest to the longest allowed, shuffled in a fixed way."""
    if count == 1:
        return [PROMPT_TOKENS_MAX]
    ratio = PROMPT_TOKENS_MAX / PROMPT_TOKENS_MIN
    ascending = [round(PROMPT_TOKENS_MIN * ratio ** (index / (count - 1))) for index in range(count)]
    return [length for first in range(_ORDER_STEP) for length in ascending[first::_ORDER_STEP]]


def document_text() -> bytes:
    """The documents of the source tree; where there is none (a wheel), the text of the package's own core."""
    package = resources.files("kvferry")
    texts = _tree_documents(Path(str(package)).parent)
    if sum(map(len, texts)) < 2 * PROMPT_TOKENS_MAX:
        core = package / "core"
        texts = [core.joinpath(name).read_bytes() for name in ("errors.py", "layouts.py", "reasons.py")]
    return b"\n".join(texts)


def _tree_documents(folder: Path) -> list[bytes]:
    if not (folder / "pyproject.toml").is_file():
        return []
    return [path.read_bytes() for name in _DOCUMENTS if (path := folder / name).is_file()]
