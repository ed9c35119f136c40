"""The words of a DSN for people: what happened first, what the other side said, and what can be done."""

from __future__ import annotations

import re
import textwrap
from functools import partial
from ipaddress import ip_address

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.foreign_text import printable
from elemta.message.encoded_words import decode_words
from elemta.message.notice import DsnAction, Notice, NoticeKind, NoticeSettings
from elemta.message.trace import date_time
from elemta.outcome import Outcome

WIDTH = 76
_LONGEST_TEXT = 1000
_LONGEST_WORD = 200
_LONGEST_ADDRESS = 225  # in UTF-8 still less than a line may have
_LONGEST_ASCII_ADDRESS = 500
_LONGEST_SUBJECT = 300
_LONG_WORD = re.compile(rf"(\S{{{_LONGEST_WORD}}})(?=\S)")

# The forms of a next hop's name: [address]:port, host:port, host[address]:port, host
_NEXT_HOP = re.compile(r"(?:\[([^\]]*)\]|([^/:\[\]]+)(?:\[[^\]]*\])?)(?::\d+)?\Z")
_HOST = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")

# What the subject and detail of an enhanced code say (RFC 3463 §3; IANA's registry has the later ones), and
# what a sender can do about it.
_CHECK_ADDRESS = "Check the address for mistakes and send the message again."
_SMALLER = "Send it in smaller parts, or put the file where the recipient can fetch it."
_ASK = "Ask the recipient by another way, or show them this notice: their administrator knows the reason."
_CHANGE = "Look at the answer above: it may name the reason, or a page about it."
_MEANINGS: dict[str, tuple[str, str]] = {
    "1.0": ("The address was not accepted.", _CHECK_ADDRESS),
    "1.1": ("There is no such mailbox there.", _CHECK_ADDRESS),
    "1.2": ("The part of the address after the @ is no domain that takes mail.", _CHECK_ADDRESS),
    "1.3": ("The address is not written the way addresses are.", _CHECK_ADDRESS),
    "1.4": ("The address stands for more than one mailbox there.", _CHECK_ADDRESS),
    "1.6": ("The mailbox has moved and its new address is not known.", _ASK),
    "1.7": ("Your own address, as it came with the message, was not accepted.", _CHANGE),
    "1.8": ("Your own address, as it came with the message, was not accepted.", _CHANGE),
    "1.10": ("The domain says that it takes no mail.", _CHECK_ADDRESS),
    "2.0": ("The mailbox can't take the message.", _ASK),
    "2.1": ("The mailbox is switched off and takes no mail.", _ASK),
    "2.2": ("The mailbox is full.", "Send it again later, or reach the recipient by another way."),
    "2.3": ("The message is larger than the mailbox takes.", _SMALLER),
    "3.0": ("The mail system there has trouble.", "Send the message again later."),
    "3.1": ("The mail system there has no space left.", "Send the message again later."),
    "3.2": ("The mail system there takes no mail now.", "Send the message again later."),
    "3.4": ("The message is larger than the mail system there takes.", _SMALLER),
    "4.0": ("There is trouble on the way to the recipient's mail system.", "Send the message again later."),
    "4.1": ("The recipient's mail system does not answer.", _CHECK_ADDRESS),
    "4.2": ("The connection to the recipient's mail system broke.", "Send the message again later."),
    "4.3": ("It can't be found out which host takes mail for the domain.", _CHECK_ADDRESS),
    "4.4": ("There is no way to the recipient's mail system.", _CHECK_ADDRESS),
    "4.5": ("The mail system there is overloaded.", "Send the message again later."),
    "4.6": ("The message goes round in a circle between mail systems.", _ASK),
    "4.7": ("The message was too long on its way.", "Send the message again later."),
    "5.3": (
        "The message has more recipients than the mail system there takes.",
        "Send it to fewer at a time.",
    ),
    "6.0": ("The mail system there does not take a message of this kind.", _ASK),
    "6.1": ("The mail system there does not take a message of this kind.", _ASK),
    "6.3": ("The mail system there does not take a message of this kind.", _ASK),
    "6.7": (
        "The mail system there does not know addresses or header fields with letters beyond ASCII.",
        "Ask the recipient for an address in plain letters, and send the message to that one.",
    ),
    "7.0": ("The mail system there refused the message by its rules.", _CHANGE),
    "7.1": ("The mail system there refused the message by its rules.", _CHANGE),
    "7.2": ("You may not write to this mailing list.", _ASK),
    "7.8": ("The mail system there wants its clients to log in.", _CHANGE),
    "7.25": ("The mail system there wants a host name for our address.", _CHANGE),
    "7.26": ("The mail system there could not verify the sender of the message.", _CHANGE),
    "7.27": ("Your domain says that it takes no mail, so mail from it is refused.", _CHANGE),
}
_UNKNOWN = {
    "2": ("The message was accepted.", ""),
    "4": ("The message can't be taken now.", "Send the message again later."),
    "5": ("The message was refused.", _CHANGE),
}


def meaning(status: str) -> tuple[str, str]:
    """What an enhanced status code says in plain words, and what the sender can do about it."""
    kind, _, detail = status.partition(".")
    return _MEANINGS.get(detail) or _UNKNOWN.get(kind, _UNKNOWN["5"])


def explanation(notice: Notice, settings: NoticeSettings, subject: str | None) -> str:
    """The first part of the DSN, in lines of a readable length that end in LF.

    ``subject`` is the value of the message's Subject field, None where it has none.
    """
    parts = [paragraph(_opening(notice, settings))]
    parts += map(partial(_about, notice), notice.recipients, notice.outcomes)
    parts.append(_closing(notice, settings.hostname, subject_of(subject)))
    return "\n\n".join(parts) + "\n"


def mta_name(next_hop: str) -> str:
    """The host of an outcome's next hop as a DSN names it: a domain, or an address literal.

    "" where it is local: a directory or a Unix socket, which other hosts need not know.
    """
    match = _NEXT_HOP.match(next_hop)
    host = (match[1] or match[2]) if match else next_hop
    try:
        # A scope means nothing elsewhere, and may be any text.
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host if _HOST.fullmatch(host) else ""
    # RFC 5321 §4.1.3
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def _opening(notice: Notice, settings: NoticeSettings) -> str:
    """What happened, in the first sentence; then whether the sender has to do anything."""
    count = len(notice.recipients)
    whom = shown(notice.recipients[0].address) if count == 1 else f"{count} recipients"
    if notice.kind is NoticeKind.DELAY:
        return (
            f"Your message to {whom} could not be delivered yet. You need not send it again: "
            f"it is tried again by itself until {_moment(settings.retry_until(notice))}."
        )
    if notice.kind is NoticeKind.SUCCESS:
        if all(notice.action(outcome) is DsnAction.DELIVERED for outcome in notice.outcomes):
            return f"Your message to {whom} was delivered."
        return f"Your message to {whom} was handed on."
    return f"Your message to {whom} could not be delivered, and will not be tried again."


def _about(notice: Notice, recipient: Recipient, outcome: Outcome) -> str:
    """One recipient: its address, what happened in plain words, the other side's reply, what to do."""
    lines = [shown(recipient.address) + _written_to(recipient)]
    said, advice = _words(notice, outcome)
    lines.append(paragraph(said, "    "))
    host = mta_name(outcome.next_hop)
    if outcome.code:
        reply = plain(f"{outcome.code} {outcome.enhanced} {outcome.text}")
        lines += [f"    The answer of {host or 'the mail system there'}:", paragraph(reply, "        ")]
    elif outcome.text and notice.kind is not NoticeKind.SUCCESS:
        lines += ["    What happened:", paragraph(plain(outcome.text), "        ")]
    if advice:
        lines.append(paragraph(f"What you can do: {advice}", "    "))
    return "\n".join(lines)


def _written_to(recipient: Recipient) -> str:
    """The address that the sender knows, where the mail was for another one on its way here."""
    kind, _, original = (recipient.orcpt or "").partition(";")
    if kind not in ("rfc822", "utf-8") or original.lower() == str(recipient).lower():
        return ""
    return f"\n    (you wrote to {plain(original, _LONGEST_ADDRESS)})"


def _moment(at: float) -> str:
    return date_time(at).replace("+0000", "UTC")


def _words(notice: Notice, outcome: Outcome) -> tuple[str, str]:
    action, expired = notice.action(outcome), notice.has_expired(outcome)
    if action is DsnAction.DELIVERED:
        return "It is in the mailbox.", ""
    if action is DsnAction.RELAYED:
        return "It was handed on to a mail system that does not report what becomes of it.", ""
    if action is DsnAction.EXPANDED:
        return "It was handed on to the members of a list.", ""
    said, advice = meaning(outcome.enhanced or ("4.0.0" if expired else notice.status(outcome)))
    if action is DsnAction.DELAYED:
        return said, ""
    if expired:
        waited = span(notice.at - notice.envelope.received_at)
        return f"It was tried for {waited}. The last time: {said[0].lower()}{said[1:]}", advice
    return said, advice


def _closing(notice: Notice, hostname: str, subject: str) -> str:
    envelope = notice.envelope
    lines = ["Your message:"]
    if subject:
        lines.append(paragraph(f"Subject: {subject}", "    "))
    lines.append(f"    Taken in by {hostname}: {_moment(envelope.received_at)}")
    lines.append(f"    Queue id: {plain(envelope.queue_id)}")
    lines.append("")
    lines.append(
        paragraph(
            "This notice is only about the recipients named above. It was written by the mail system at "
            f"{hostname}; its administrator will ask for the queue id."
        )
    )
    return "\n".join(lines)


def plain(text: str, limit: int = _LONGEST_TEXT) -> str:
    """Foreign text as one line of bounded length, without control characters.

    Runs of white space become one blank; a word too long for a line of a message is parted.
    """
    line = " ".join(text[:limit].split())
    return _LONG_WORD.sub(r"\1 ", printable(line))


def shown(address: Address) -> str:
    """An address for people: printable and bounded."""
    text = printable(str(address))
    limit = _LONGEST_ASCII_ADDRESS if text.isascii() else _LONGEST_ADDRESS
    return text if len(text) <= limit else f"{text[:limit]}..."


def paragraph(text: str, indent: str = "") -> str:
    """The text in lines of a readable length, each behind the indent; no line end at its end."""
    lines = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def subject_of(value: str | None) -> str:
    """A Subject field's value for people; what can't be decoded stays as it is. "" where there is none."""
    if not value:
        return ""
    return plain(decode_words(value[:_LONGEST_SUBJECT]), _LONGEST_SUBJECT)


def span(seconds: float) -> str:
    """A time span as people say it, in the largest unit that fits."""
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if abs(seconds - length) < length / 20:
            return f"1 {name}"
        if seconds >= 1.95 * length:
            return f"{round(seconds / length)} {name}s"
    return f"{max(0, round(seconds))} seconds"
