"""JSON of what we say ourselves: a path that is no Unicode costs neither a log its line nor a client its answer."""

from __future__ import annotations

from typing import Any

import orjson


def as_json(value: Any) -> bytes:
    """As orjson writes it; what is no Unicode as `\\udce9`, and what JSON has not by its `repr`."""
    try:
        return orjson.dumps(value, default=repr)
    except TypeError:
        return orjson.dumps(_in_unicode(value), default=repr)


def _in_unicode(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_in_unicode(key): _in_unicode(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_in_unicode(held) for held in value]
    return value
