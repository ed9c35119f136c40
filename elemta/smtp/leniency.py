"""What a session forgives while ``[[listener]] strict`` is false: one table of it all.

Each row is a spelling outside of the RFCs' grammar that real clients use and that can mean only one thing.
What could mean two things to two readers is in no row. ``docs/leniency.md`` is generated from the table.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Leniency(enum.Enum):
    """The kinds, under the names that the metric and the log use."""

    BLANKS = "blanks"
    BARE_LF = "bare_lf"
    HELO_NAME = "helo_name"
    NO_BRACKETS = "no_brackets"
    NO_DOMAIN = "no_domain"
    LONG_LOCAL_PART = "long_local_part"
    DOTS = "dots"
    UNDERSCORE = "underscore"
    ENVID = "envid"
    ORCPT = "orcpt"
    AUTH = "auth"
    UNKNOWN_PARAMETER = "unknown_parameter"
    BARE_NEWLINE = "bare_newline"


@dataclass(frozen=True, slots=True)
class Forgiven:
    """One row: what is taken, why no reader can take it for something else, and the rule that it bends.

    ``examples`` are lines of a client, in Python's escapes where they have controls. ``bounds`` says what of
    the same kind is refused all the same. ``relayers_only``: only from users that logged in and from clients
    in ``relay_from``.
    """

    kind: Leniency
    taken: str
    meaning: str
    bounds: str
    rfc: str
    examples: tuple[str, ...]
    relayers_only: bool = False


# RFC 5321 §4.1.1, RFC 5321 §4.1.2 and others: each row names its own.
FORGIVEN: tuple[Forgiven, ...] = (
    Forgiven(
        Leniency.BLANKS,
        "Spare blanks and TABs before, between and behind the words of a command, and just inside the angle "
        "brackets.",
        "No word is made longer, shorter or divided.",
        "A blank within an address, or a TAB within quotes, is refused.",
        "RFC 5321 §4.1.1",
        (r"MAIL  FROM:\t<anna@example.org>", r"RCPT TO : < bob@example.com >", r"DATA\t"),
    ),
    Forgiven(
        Leniency.BARE_LF,
        "A command line, or a line of an AUTH exchange, that ends in a bare LF.",
        "The line has no CR, so that no reader can end it elsewhere before this LF.",
        "BDAT needs its CRLF: a reader that waits for one finds another chunk. A bare CR is refused. A "
        "line of a message that ends in a bare LF never ends the message.",
        "RFC 5321 §2.3.8",
        (r"EHLO test\n",),
    ),
    Forgiven(
        Leniency.HELO_NAME,
        "A HELO or EHLO name of up to 255 printable characters, in UTF-8 or in an encoding of one octet a "
        "character.",
        "The name is only logged, shown and counted. Nothing is decided by it unless a policy says so.",
        "An empty name and controls are refused. The log and the Received field show other characters than "
        "those of host names escaped or as a question mark.",
        "RFC 5321 §4.1.1.1",
        ("EHLO Annas PC", "EHLO Müller-PC", "HELO (none)"),
    ),
    Forgiven(
        Leniency.NO_BRACKETS,
        "An address without angle brackets.",
        "It is one word with at most one @, which ends at the first blank or at the end of the line.",
        "One bracket alone, a quoted local part, a comma, a display name and a source route are refused. "
        "An unknown parameter behind such an address must have a value, and the address a domain.",
        "RFC 5321 §4.1.1.2",
        ("MAIL FROM:anna@example.org", "RCPT TO: bob@example.com NOTIFY=NEVER"),
    ),
    Forgiven(
        Leniency.NO_DOMAIN,
        "An address without a domain. It gets the first of [domains] local. A recipient keeps what was sent "
        "as its original recipient (ORCPT), which a DSN shows.",
        "The client is of this host's own network or users, where a bare name is a name here.",
        "Only ASCII without %, ! and : is taken, because these may name another host.",
        "RFC 5321 §4.1.2",
        ("RCPT TO:<root>", "MAIL FROM:www-data"),
        relayers_only=True,
    ),
    Forgiven(
        Leniency.LONG_LOCAL_PART,
        "A local part of up to 256 octets, where the RFC has 64. VERP, SRS and BATV make such ones.",
        "The length changes nothing of what is meant.",
        "The path may have 512 octets then, which the RFC has at 256.",
        "RFC 5321 §4.5.3.1.1",
        ("MAIL FROM:<bounces+0123456789-0123456789-0123456789-0123456789-anna=example.org@lists.example>",),
    ),
    Forgiven(
        Leniency.DOTS,
        "A local part with a dot at its beginning, at its end or behind another dot. Many Japanese mobile "
        "addresses have one. The address is sent on as it was written, without quotes.",
        "Only the domain's server gives dots a meaning, and it gets all of them.",
        "A local part of nothing but dots is refused.",
        "RFC 5321 §4.1.2",
        ("RCPT TO:<user..name@mobile.example>", "MAIL FROM:<user.@mobile.example>"),
    ),
    Forgiven(
        Leniency.UNDERSCORE,
        "An underscore in a domain.",
        "DNS has such names, and an underscore is nothing else.",
        "All other rules for domains hold.",
        "RFC 5321 §4.1.2",
        ("MAIL FROM:<root@db_1.internal>",),
    ),
    Forgiven(
        Leniency.ENVID,
        "A malformed ENVID. It is ignored.",
        "It is a text for the sender's own use: a DSN without it is as good.",
        "A repeated parameter is refused.",
        "RFC 3461 §4.4",
        ("MAIL FROM:<anna@example.org> ENVID=QQ314159=",),
    ),
    Forgiven(
        Leniency.ORCPT,
        "A malformed ORCPT. It is ignored.",
        "It is a text for DSNs, which then show the recipient of the command.",
        "A repeated parameter is refused.",
        "RFC 3461 §4.2",
        ("RCPT TO:<bob@example.com> ORCPT=rfc822;prvs=12=bob@example.com",),
    ),
    Forgiven(
        Leniency.AUTH,
        "A malformed AUTH= parameter of MAIL. It is ignored.",
        "Elemta trusts no AUTH= of a client, so it decides nothing.",
        "A repeated parameter is refused.",
        "RFC 4954 §5",
        ("MAIL FROM:<anna@example.org> AUTH=<anna@example.org>",),
    ),
    Forgiven(
        Leniency.UNKNOWN_PARAMETER,
        "A parameter of an extension that EHLO did not offer. It is ignored.",
        "EHLO has not offered the extension, so the client can only expect a delivery without it.",
        "REQUIRETLS and RRVS get 555: they forbid a delivery that they do not protect. What is no keyword, "
        "or has an offered keyword with a bad value, is refused.",
        "RFC 5321 §4.1.1.11",
        ("MAIL FROM:<anna@example.org> XVERP", "RCPT TO:<bob@example.com> X-TRACE=7"),
    ),
    Forgiven(
        Leniency.BARE_NEWLINE,
        "A bare CR or LF in a message. It becomes CRLF, whatever [server] bare_newline says.",
        "The end of the message was looked for before, in what the client sent. What is sent on has no bare "
        "CR or LF and all its dots stuffed, so that no next hop finds an end in it.",
        "A NUL is refused. Only CRLF.CRLF ends the message.",
        "RFC 5321 §2.3.8",
        (r"two\nlines\r\n.\r\n",),
        relayers_only=True,
    ),
)

#: Unknown parameters that are never ignored: to deliver without what they ask for could harm.
# RFC 8689 §4.2, RFC 7293 §5.1
BINDING_PARAMETERS = frozenset({"requiretls", "rrvs"})

Kinds = list[Leniency]
"""The kinds that a reader met on its way, in order. A reader that is given None is strict."""


def forgive(kinds: Kinds | None, kind: Leniency) -> bool:
    """Note ``kind``, or return False where the reader is strict."""
    if kinds is None:
        return False
    if kind not in kinds:
        kinds.append(kind)
    return True
