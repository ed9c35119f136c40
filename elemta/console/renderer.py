"""Templates and what they show: every text is hostile, from any source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from elemta.ctl.limits import when_passes
from elemta.ctl.text import age, size, where_counted

HERE = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
# Controls, and what turns the direction of a text or hides in it; RFC 3454's and Unicode's TR 36.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
NOTHING = "\N{EN DASH}"


def visible(value: object) -> object:
    """A value as it is shown: what can't be seen, or turns the text around it, is written as an escape."""
    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _INVISIBLE.sub(_escape, value)
    return value


def _escape(match: re.Match[str]) -> str:
    point = ord(match[0])
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def duration(seconds: float | None) -> str:
    """A duration in its two largest units; a dash where there is none."""
    return NOTHING if seconds is None else age(seconds)


def brief_seconds(value: float | None) -> str:
    """A short time with its unit, to two figures; a dash where there is none."""
    if value is None:
        return NOTHING
    if value >= 1:
        return f"{value:g} s"
    return f"{value * 1000:.2g} ms" if value < 0.0995 else f"{value * 1000:.0f} ms"


def moment(at: float | None) -> str:
    """A time of day, in UTC; a dash where there is none."""
    if at is None:
        return NOTHING
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return NOTHING


def short(text: object, most: int = 200) -> str:
    """The first characters of a long text."""
    found = str(text)
    return found if len(found) <= most else found[:most] + "…"


class Asset:
    """A file that the pages use: its content, its type, and a tag of this version."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.content_type = _TYPES[path.suffix]
        self.tag = hashlib.sha256(self.content).hexdigest()[:16]


class Renderer:
    """Renders pages. ``now`` gives seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.assets = {path.name: Asset(path) for path in sorted((HERE / "static").iterdir())}
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=visible,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(
            size=size,
            duration=duration,
            moment=moment,
            short=short,
            seconds=brief_seconds,
            where_counted=where_counted,
            when_passes=when_passes,
        )
        self._templates.globals.update(asset=self._asset)
        for name in self._templates.list_templates():
            # Now, since it reads files.
            self._templates.get_template(name)

    def render(self, template: str, values: Mapping[str, Any]) -> bytes:
        """The page, in UTF-8."""
        text = self._templates.get_template(template).render(now=self._now(), **values)
        return text.encode("utf-8", "backslashreplace")

    def _asset(self, name: str) -> str:
        return f"/static/{name}?{self.assets[name].tag}"
