"""Removes secrets from values that are shown: in faults, and in the dump of the configuration."""

from __future__ import annotations

import json
import re

_WELL_FORMED = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/?#@:]*):[^\s/?#]*@")
_PARAMETER = re.compile(r"(?P<name>[?&][A-Za-z_]*password=)[^\s&#]+")
_ANY_FORM = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)
SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token|credential|api_?key|access_?key|private_?key$", re.IGNORECASE
)
# The arguments of these kinds of checkers are paths; of any other kind they may be passwords.
CHECKERS_WITH_PATHS = frozenset({"elemta-users", "file", "unix", "pam", "sshkey"})

STARS = "***"
_LONGEST_SHOWN = 2000


def redacted_url(text: str) -> str:
    """The text with every password replaced by ``***`` that a well-formed URL in it has."""
    text = _WELL_FORMED.sub(rf"\g<scheme>\g<user>:{STARS}@", text)
    return _PARAMETER.sub(rf"\g<name>{STARS}", text)


def redacted_checker(text: str) -> str:
    """A strcred description without what may be a password."""
    kind, colon, _ = text.partition(":")
    return text if not colon or kind in CHECKERS_WITH_PATHS else f"{kind}:{STARS}"


def redacted_table(value: object, key: str = "") -> object:
    """A policy's raw table without passwords in URLs and without the values of keys named like secrets."""
    if isinstance(value, dict):
        return {name: redacted_table(each, name) for name, each in value.items()}
    if isinstance(value, str) and value and SECRET_NAME.search(key):
        return STARS
    if isinstance(value, list):
        return [redacted_table(each, key) for each in value]
    return redacted_url(value) if isinstance(value, str) else value


def shown(key: str, found: object) -> str:
    """What was found at a dotted key as TOML writes it, bounded and without secrets, for a fault."""
    name = re.sub(r"\[\d+\]$", "", key).rpartition(".")[2]
    if isinstance(found, bool | dict):
        return "a table" if isinstance(found, dict) else str(found).lower()
    if isinstance(found, str) and len(found) > _LONGEST_SHOWN:
        # To look for secrets in it takes the square of its length.
        return f"a text of {len(found)} characters"
    if isinstance(found, list):
        return "a list" if found else "an empty list"
    if key.startswith("policy.") and SECRET_NAME.search(name):
        return STARS
    if isinstance(found, str):
        return _quoted(_without_secrets(name, found))
    return str(found)[:80]


def _without_secrets(name: str, text: str) -> str:
    if name == "valkey_url":
        # What can't be read as a URL may hold its password anywhere before the host.
        well_formed = redacted_url(text)
        return well_formed if well_formed != text else _ANY_FORM.sub(rf"\g<scheme>{STARS}@", text)
    return redacted_checker(text) if name == "checkers" else redacted_url(text)


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 80 else text[:77] + "...", ensure_ascii=False)
