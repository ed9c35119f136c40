"""JSON without blanks, in ASCII, for what is written for each message."""

from __future__ import annotations

import json.encoder
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Any

_plain_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
# It is not public, and has been in CPython for as long as there is Python 3. `encode` makes such an encoder
# anew for each value, which takes longer than a short value does. Elsewhere it is None.
_make_encoder: Callable[..., Any] | None = getattr(json.encoder, "c_make_encoder", None)


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _encoder(make: Callable[..., Any] | None) -> Callable[[object], str]:
    if make is None:
        return _plain_encode
    # markers, default, encoder, indent, key separator, item separator, sort_keys, skipkeys, allow_nan
    pieces = make(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)
    return lambda value: "".join(pieces(value, 0))


json_text = _encoder(_make_encoder)
"""The JSON of strings, numbers, booleans, None, lists, tuples and dicts of them. TypeError for others."""
