"""The catalogue of replies: every reply that a server says by itself has a name here.

Texts are generic and stable, since users' scripts read them; what is particular goes to the log.
"""

from __future__ import annotations

from functools import lru_cache

from elemta.smtp.reply import Reply


# Replies of every session: one object for each, with its octets.
@lru_cache(maxsize=64)
def greeting(hostname: str) -> Reply:
    # RFC 5321 §4.3.1
    return Reply.of(220, "", f"{hostname} ESMTP Elemta")


def in_place_of_greeting(reply: Reply) -> Reply:
    """A refusal as a client may read it where the greeting would be."""
    if reply.is_transient:
        # RFC 5321 §3.8: the only transient reply to a connection
        return reply.with_code(421, reply.enhanced)
    # RFC 5321 §3.1: 554, or RFC 7504 §3: 521 where mail is never taken
    return reply if reply.code in (521, 554) else reply.with_code(554, reply.enhanced)


@lru_cache(maxsize=64)
def hello(hostname: str, keywords: tuple[str, ...] = ()) -> Reply:
    """The reply to HELO, or with ``keywords`` to EHLO; neither has an enhanced code."""
    # RFC 2034 §4: the greeting and the reply to HELO and EHLO carry no enhanced status code.
    return Reply(250, "", (hostname, *keywords))


@lru_cache(maxsize=64)
def closing(hostname: str) -> Reply:
    return Reply.of(221, "2.0.0", f"{hostname} closing connection")


def queued(queue_id: str) -> Reply:
    text = f"Message accepted for delivery; queued as {queue_id}"
    # A queue id has only what can stand in a reply.
    return Reply(250, "2.0.0", (text,), f"250 2.0.0 {text}\r\n".encode("ascii"))


def chunk_received(octets: int) -> Reply:
    # RFC 3030 §2
    return Reply.of(250, "2.0.0", f"{octets} octets received")


def challenge(text: str) -> Reply:
    # RFC 4954 §4: 334 and the challenge in base64, which may be empty.
    return Reply.of(334, "", text)


OK = Reply.of(250, "2.0.0", "OK")
SENDER_OK = Reply.of(250, "2.1.0", "Sender OK")
RECIPIENT_OK = Reply.of(250, "2.1.5", "Recipient OK")
# RFC 2034 §4: 354 carries no enhanced status code.
START_MAIL_INPUT = Reply.of(354, "", "Start mail input; end with <CRLF>.<CRLF>")
READY_FOR_TLS = Reply.of(220, "2.0.0", "Ready to start TLS")
AUTHENTICATED = Reply.of(235, "2.7.0", "Authentication successful")
# RFC 5321 §3.5.3
CANNOT_VERIFY = Reply.of(252, "2.5.0", "Cannot VRFY user, but will accept message and attempt delivery")
HELP = Reply.of(
    214,
    "2.0.0",
    "Commands: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP STARTTLS AUTH",
    "See RFC 5321",
)

# The command itself is wrong.

UNKNOWN_COMMAND = Reply.of(500, "5.5.2", "Command not recognized")
LINE_TOO_LONG = Reply.of(500, "5.5.2", "Line too long")
BARE_NEWLINE_IN_COMMAND = Reply.of(500, "5.5.2", "Command lines end with CRLF")
CONTROL_IN_COMMAND = Reply.of(501, "5.5.2", "Control characters are not allowed in commands")
NOT_UTF8 = Reply.of(501, "5.6.7", "Command is neither ASCII nor UTF-8")
BAD_ARGUMENT = Reply.of(501, "5.5.4", "Syntax error in arguments")
NO_ARGUMENT_ALLOWED = Reply.of(501, "5.5.4", "This command takes no argument")
BAD_HELO = Reply.of(501, "5.5.4", "Domain name or address literal required")
BAD_SENDER = Reply.of(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT = Reply.of(501, "5.1.3", "Bad recipient address syntax")
MAIL_SYNTAX = Reply.of(501, "5.5.4", "Syntax: MAIL FROM:<address> [parameters]")
RCPT_SYNTAX = Reply.of(501, "5.5.4", "Syntax: RCPT TO:<address> [parameters]")
BDAT_SYNTAX = Reply.of(501, "5.5.4", "Syntax: BDAT size [LAST]")
AUTH_SYNTAX = Reply.of(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
BAD_PARAMETER = Reply.of(501, "5.5.4", "Bad or repeated parameter")
# RFC 5321 §4.1.1.11
UNKNOWN_PARAMETER = Reply.of(555, "5.5.4", "Parameter not recognized or not implemented")
NOT_IMPLEMENTED = Reply.of(502, "5.5.1", "Command not implemented")
# RFC 6531 §3.5
NEEDS_SMTPUTF8 = Reply.of(553, "5.6.7", "Address needs SMTPUTF8")
NEXT_HOP_WITHOUT_SMTPUTF8 = Reply.of(553, "5.6.7", "The next hop takes no internationalized addresses")

# The command comes at the wrong time.

HELO_FIRST = Reply.of(503, "5.5.1", "Send EHLO first")
MAIL_FIRST = Reply.of(503, "5.5.1", "Need MAIL command")
NESTED_MAIL = Reply.of(503, "5.5.1", "Nested MAIL command")
NO_VALID_RECIPIENTS = Reply.of(554, "5.5.1", "No valid recipients")
CHUNKS_UNDER_WAY = Reply.of(503, "5.5.1", "A message is being sent with BDAT")
NOT_IN_TRANSACTION = Reply.of(503, "5.5.1", "Not during a mail transaction")
TLS_ACTIVE = Reply.of(503, "5.5.1", "TLS already active")
ALREADY_AUTHENTICATED = Reply.of(503, "5.5.1", "Already authenticated")
IMPROPER_PIPELINING = Reply.of(554, "5.5.0", "Improper use of command pipelining")
EARLY_TALKER = Reply.of(554, "5.5.1", "Client spoke before the greeting")
NOT_HTTP = Reply.of(554, "5.5.1", "This is an SMTP server, not HTTP")
NOT_TLS_YET = Reply.of(554, "5.5.1", "This is an SMTP server; TLS does not start here by itself")
SERVICE_REFUSED = Reply.of(503, "5.5.1", "No service here; send QUIT")

# Authentication.

# RFC 4954 §6
AUTH_REQUIRED = Reply.of(530, "5.7.0", "Authentication required")
AUTH_FAILED = Reply.of(535, "5.7.8", "Authentication credentials invalid")
AUTH_NEEDS_TLS = Reply.of(538, "5.7.11", "Encryption required for authentication")
AUTH_TROUBLE = Reply.of(454, "4.7.0", "Temporary authentication failure")
AUTH_CANCELLED = Reply.of(501, "5.7.0", "Authentication cancelled")
AUTH_UNKNOWN_MECHANISM = Reply.of(504, "5.5.4", "Authentication mechanism not supported")
AUTH_MALFORMED = Reply.of(501, "5.5.2", "Malformed authentication response")
# RFC 4954 §4
AUTH_TOO_LONG = Reply.of(500, "5.5.6", "Authentication exchange line is too long")

# Limits.

TOO_MANY_RECIPIENTS = Reply.of(452, "4.5.3", "Too many recipients")
# The envelope is full; the client sends the message to these, and again to the rest (RFC 5321 §4.5.3.1.10).
ENVELOPE_FULL = Reply.of(452, "4.5.3", "Too many octets of recipients")
ENVELOPES_FULL = Reply.of(452, "4.3.1", "Insufficient memory, try again later")
MESSAGE_TOO_BIG = Reply.of(552, "5.3.4", "Message size exceeds fixed limit")
BARE_NEWLINE_IN_MESSAGE = Reply.of(550, "5.6.0", "Message contains a bare CR or LF")
NUL_IN_MESSAGE = Reply.of(550, "5.6.0", "Message contains a NUL octet")
TOO_MANY_ERRORS = Reply.of(421, "4.7.0", "Too many errors")
TOO_MANY_IDLE_COMMANDS = Reply.of(421, "4.7.0", "Too many commands without a message")
TOO_MANY_REFUSALS = Reply.of(421, "4.7.0", "Too many refused commands")
TOO_MANY_AUTH_FAILURES = Reply.of(421, "4.7.0", "Too many failed authentications")
TOO_MANY_CHUNKS = Reply.of(421, "4.7.0", "Too many small chunks")
TOO_LONG_A_LINE = Reply.of(421, "4.7.0", "Line without an end")
TOO_MUCH_PIPELINED = Reply.of(421, "4.7.0", "Too much input without waiting for replies")

# What the shell says.

RELAY_DENIED = Reply.of(554, "5.7.1", "Relay access denied")
NO_MAILBOX = Reply.of(550, "5.1.1", "No such mailbox")
SENDER_NOT_OWN = Reply.of(553, "5.7.1", "You may not send as this address")
AUTHOR_NOT_OWN = Reply.of(550, "5.7.1", "You may not send as an address in From or Sender")
AUTHOR_UNREADABLE = Reply.of(550, "5.7.1", "The addresses in From or Sender cannot be read")
REFUSED_BY_POLICY = Reply.of(554, "5.7.1", "Refused by local policy")
LOCAL_TROUBLE = Reply.of(451, "4.3.0", "Local trouble, try again later")
STORAGE_FULL = Reply.of(452, "4.3.1", "Insufficient storage, try again later")
TIMEOUT = Reply.of(421, "4.4.2", "Timeout, closing connection")
SHUTTING_DOWN = Reply.of(421, "4.3.2", "Service shutting down, try again later")
STARTING = Reply.of(421, "4.3.2", "Service not ready yet, try again later")
# RFC 5321 §6.3
TOO_MANY_HOPS = Reply.of(554, "5.4.6", "Too many hops, mail loop suspected")
TOO_MANY_CONNECTIONS = Reply.of(421, "4.7.0", "Too many connections, try again later")
# RFC 3463 §3.4 X.3.2
OVERLOADED = Reply.of(421, "4.3.2", "Too busy, try again later")

#: Replies that only repeat what an earlier refusal has said.
CONSEQUENCES = frozenset({MAIL_FIRST, NO_VALID_RECIPIENTS})

#: Refusals that are no protocol error of the client: it could not know, or did as PIPELINING allows.
DECLINES = frozenset(
    {
        NO_VALID_RECIPIENTS,
        TOO_MANY_RECIPIENTS,
        ENVELOPE_FULL,
        ENVELOPES_FULL,
        MESSAGE_TOO_BIG,
        BARE_NEWLINE_IN_MESSAGE,
        NUL_IN_MESSAGE,
    }
)
