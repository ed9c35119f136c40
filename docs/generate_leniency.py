"""Writes docs/leniency.md from the table in elemta/smtp/leniency.py.

python docs/generate_leniency.py           writes docs/leniency.md
python docs/generate_leniency.py --check   fails when it is stale
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from generated_file import write_or_check

from elemta.smtp.leniency import BINDING_PARAMETERS, FORGIVEN, Forgiven

TARGET = Path(__file__).resolve().parent / "leniency.md"

HEAD = """# Leniency

`make generate` writes this page from the table in `elemta/smtp/leniency.py`.

Many programs that send mail do not write SMTP as the RFCs have it. Elemta takes what they write when it
can mean only one thing. `[[listener]] strict = true` turns that off for a listener: it keeps to the
grammar.

- The strict grammar is tried first. What it takes means the same on every listener.
- Each case is counted in `elemta_leniency_total` under its kind. The log has one `command.forgiven`
  record for each kind and session.
- The address is stored, sent on and shown in notices as it was written, in angle brackets.

"""

TAIL = """
## Never forgiven

No setting makes Elemta take these:

- any end of a message but CRLF.CRLF
- a bare CR in a command, a NUL and other controls but TAB
- an address that two readers could read as two: a second `@` or bracket, a comma, a display name, text
  behind the bracket, a blank within an address
- a source route (`@relay:user@host`) as a way to relay: the route is dropped, as RFC 5321 §C has it, and
  behind one no other leniency applies
- `user%host@` and `host!user@` as ways to relay: a client that may not relay gets 554 for them
- the parameters {binding}, which get 555

Where bare newlines are refused, a line with a single dot and a bare CR or LF on either side of it gets
`550 5.6.0` and the connection is closed at once. Some servers take it for the end of the message, so
what follows may be content or commands. A client that means it for the end has its answer and does not
wait for a timeout.

A client that sends before the greeting is no matter of `strict`: `[[listener]] early_talkers` decides.
"""


def entry(row: Forgiven) -> str:
    title = row.kind.value
    who = "users that logged in and clients in `relay_from`" if row.relayers_only else "any client"
    examples = "\n".join(row.examples)
    bullets = [
        f"- From: {who}.",
        f"- One meaning: {row.meaning}",
        f"- Limits: {row.bounds}",
        f"- Bends: {row.rfc}.",
    ]
    text = "\n".join([wrapped(row.taken), "", *(wrapped(bullet, "  ") for bullet in bullets)])
    return f"## {title}\n\n{text}\n\n```text\n{examples}\n```\n"


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def render() -> str:
    """The text of docs/leniency.md."""
    binding = " and ".join(f"`{name.upper()}`" for name in sorted(BINDING_PARAMETERS))
    return HEAD + "\n".join(entry(row) for row in FORGIVEN) + TAIL.replace("{binding}", binding)


def main(arguments: list[str]) -> int:
    return write_or_check({TARGET: render()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
