"""JSON that others wrote: damage of every kind is a ``ValueError``, before it can cost memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = 1 << 20
"""Bytes of a document that people or this program write by hand: recipes, model records."""


def parse_json(content: str | bytes) -> Any:
    """A JSON document.

    Raises:
        ValueError: for what is no JSON, no UTF-8, or nested so deeply that the parser gives up.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_json_object(content: str | bytes) -> dict[str, Any]:
    """A JSON document that is an object.

    Raises:
        ValueError: as :func:`parse_json`, and for another kind of document.
    """
    document = parse_json(content)
    if not isinstance(document, dict):
        raise ValueError(f"it holds no object but {type(document).__name__}")
    return document


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
