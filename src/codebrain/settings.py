"""Untyped mappings (YAML, JSON, ``--set``) to frozen dataclasses, with errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from codebrain.errors import refusal

T = TypeVar("T")


def parse_settings(cls: type[T], raw: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass ``cls`` from ``raw``; what is not named keeps its default.

    Args:
        cls: a dataclass, possibly of dataclasses.
        raw: keys and values as a YAML or JSON file holds them.
        where: what is being read, for the message.

    Raises:
        UsageError: ``CONFIG`` for an unknown key (with the nearest known one), a missing key or a wrong type.
    """
    _refuse_unknown(cls, raw, where)
    try:
        return TypeAdapter(cls).validate_python(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise refusal("CONFIG", f"{where}: {first['msg']}", field=key, found=repr(first["input"])) from error


def _refuse_unknown(cls: Any, raw: Mapping[str, Any], where: str, path: str = "") -> None:
    known = {field.name for field in fields(cls)}
    hints = get_type_hints(cls)
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise refusal(
                "CONFIG",
                f"{where}: there is no setting {key!r}",
                field=f"{path}{key}",
                expected=", ".join(sorted(known)),
                hint=f"Did you mean {near[0]}?" if near else None,
            )
        for inner in (hints[key], *get_args(hints[key])):
            if not is_dataclass(inner):
                continue
            if inner is hints[key] or not isinstance(value, Mapping):
                nested = {f"{path}{key}.": value}
            else:
                nested = {f"{path}{key}.{name}.": part for name, part in value.items()}
            for place, part in nested.items():
                if isinstance(part, Mapping):
                    _refuse_unknown(inner, part, f"{where}, {key}", place)


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """``{"a.b": value}`` of nested mappings."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}".lstrip(".")).items()}
