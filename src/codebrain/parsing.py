"""JSON that others wrote: damage of every kind is a ``ValueError``, before it can cost memory."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

SMALL = 1 << 20
"""Bytes of a document that people or this program write by hand: recipes, model records."""

_ADAPTERS: dict[type[Any], Any] = {}


def parse_json(content: str | bytes, *, strict: bool = False) -> Any:
    """A JSON document.

    Args:
        content: the document.
        strict: nothing that the standard forbids or leaves open: UTF-8 without a byte-order mark, no NaN or infinity,
            no key twice.

    Raises:
        ValueError: for what is no JSON, no UTF-8, or nested so deeply that the parser gives up.
    """
    try:
        if not strict:
            return json.loads(content)
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte-order mark, which JSON forbids")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    facts = dict(pairs)
    if len(facts) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return facts


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def parse_json_object(content: str | bytes, *, strict: bool = False) -> dict[str, Any]:
    """A JSON document that is an object.

    Raises:
        ValueError: as :func:`parse_json`, and for another kind of document.
    """
    document = parse_json(content, strict=strict)
    if not isinstance(document, dict):
        raise ValueError(f"it holds no object but {type(document).__name__}")
    return document


def require_types(cls: type[Any], raw: object) -> None:
    """Compare a document with the fields that the dataclass ``cls`` declares; what it does not declare is passed over.

    Raises:
        ValueError: naming the first field that is missing or of another type.
    """
    from pydantic import TypeAdapter

    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    _ADAPTERS[cls].validate_json(json.dumps(raw), strict=True)


def read_small(path: Path) -> bytes:
    """The bytes of a small document.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it has more than :data:`SMALL` bytes.
    """
    with path.open("rb") as stream:
        content = stream.read(SMALL + 1)
    if len(content) > SMALL:
        raise ValueError(f"it has more than {SMALL} bytes")
    return content
