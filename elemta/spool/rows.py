"""Envelopes as rows: how values become columns, and come back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from elemta.address import NULL, Address
from elemta.envelope import (
    NO_PARAMETERS,
    BodyType,
    Client,
    Envelope,
    MailParameters,
    Notify,
    Recipient,
    Return,
)
from elemta.json_text import json_text
from elemta.spool.queue_id import row_key
from elemta.spool.records import MessageState, QueuedMessage, Submission

STATE_CODES: Mapping[MessageState, int] = {
    MessageState.ACTIVE: 0,
    MessageState.DEFERRED: 1,
    MessageState.HOLD: 2,
}
# The index that has the messages of a state, in the order of arrival.
STATE_INDEXES: Mapping[MessageState, str] = {
    MessageState.ACTIVE: "message_active",
    MessageState.DEFERRED: "message_deferred",
    MessageState.HOLD: "message_held",
}
STATES: Mapping[int, MessageState] = {code: state for state, code in STATE_CODES.items()}


def state_of(code: object) -> MessageState:
    """The state that a number in the database stands for; what stands for none waits for an operator."""
    return STATES.get(code, MessageState.HOLD)  # type: ignore[call-overload, no-any-return]


# What `message_of` reads, in this order.
MESSAGE_COLUMNS = (
    "m.queue_id, m.state, m.next_attempt_at, m.received_at, m.size,"
    " m.attempts, m.hold_reason, m.envelope, m.pending"
)
# What `part_of` reads first, in this order; the first eight stand as in MESSAGE_COLUMNS.
PART_COLUMNS = (
    "m.queue_id, p.state, p.turn, m.received_at, m.size, p.attempts, m.hold_reason, m.envelope,"
    " p.number, p.lane, p.positions, p.warned"
)
# The positions of the recipients of message m that need no attempt any more, as JSON.
FINISHED = (
    "(SELECT json_group_array(CAST(r.position AS INTEGER)) FROM recipient r"
    " WHERE r.message_id = m.id AND NOT r.pending)"
)


def encode_envelope(submission: Submission) -> str:
    """The parts of an envelope that no query looks into, as JSON; ASCII, so that any text survives."""
    client = submission.client
    value: dict[str, object] = {
        "from": _address_parts(submission.sender),
        "to": [_recipient_parts(recipient) for recipient in submission.recipients],
        "client": (client.ip, client.helo, client.listener, client.session_id, client.user, client.tls),
    }
    if submission.parameters is not NO_PARAMETERS and submission.parameters != NO_PARAMETERS:
        value["mail"] = _parameter_parts(submission.parameters)
    return json_text(value)


def _address_parts(address: Address) -> tuple[object, ...]:
    return (address.local, address.domain, True) if address.unquoted else (address.local, address.domain)


def _recipient_parts(recipient: Recipient) -> tuple[object, ...]:
    address = recipient.address
    notify = None if recipient.notify is None else recipient.notify.value
    if address.unquoted:
        return (address.local, address.domain, notify, recipient.orcpt, True)
    if notify is None and recipient.orcpt is None:
        return (address.local, address.domain)
    return (address.local, address.domain, notify, recipient.orcpt)


def _parameter_parts(parameters: MailParameters) -> dict[str, object]:
    parts: dict[str, object] = {
        "size": parameters.size,
        "body": parameters.body and parameters.body.value,
        "smtputf8": parameters.smtputf8 or None,
        "ret": parameters.ret and parameters.ret.value,
        "envid": parameters.envid,
        "auth": parameters.auth,
    }
    return {name: part for name, part in parts.items() if part is not None}


def decode_envelope(queue_id: str, received_at: float, size: int, text: str) -> Envelope:
    """What `encode_envelope` wrote; raises something of `damaged_rows.DAMAGE` for all else."""
    if not text.isascii():
        raise ValueError("it has other characters than were written")
    if type(received_at) is not float or type(size) is not int:
        raise TypeError("its time or size is no number")
    value: dict[str, Any] = json.loads(text)
    sender = value["from"]
    recipients = tuple([_recipient_of(parts) for parts in value["to"]])
    if not recipients:
        raise ValueError("it has no recipients")
    client = value["client"]
    if len(client) != 6 or not all(part is None or type(part) is str for part in client):
        raise TypeError("what is said of the client is something else")
    return Envelope(
        queue_id=queue_id,
        sender=_address_of(sender, unquoted=len(sender) > 2) if sender[0] or sender[1] else NULL,
        recipients=recipients,
        received_at=received_at,
        size=size,
        parameters=_parameters_of(value.get("mail")),
        client=Client(*client),
    )


def _address_of(parts: Sequence[Any], *, unquoted: bool) -> Address:
    local, domain = parts[0], parts[1]
    if type(local) is not str or type(domain) is not str:
        raise TypeError("an address is no text")
    return Address(local, domain, unquoted)


def _recipient_of(parts: Sequence[Any]) -> Recipient:
    address = _address_of(parts, unquoted=len(parts) > 4)
    if len(parts) == 2:
        return Recipient(address)
    return Recipient(address, None if parts[2] is None else Notify(parts[2]), parts[3])


def _parameters_of(parts: Mapping[str, Any] | None) -> MailParameters:
    if not parts:
        return NO_PARAMETERS
    body = parts.get("body")
    ret = parts.get("ret")
    return MailParameters(
        size=parts.get("size"),
        body=None if body is None else BodyType(body),
        smtputf8=bool(parts.get("smtputf8")),
        ret=None if ret is None else Return(ret),
        envid=parts.get("envid"),
        auth=parts.get("auth"),
    )


def message_of(row: Sequence[Any], finished: Iterable[int]) -> QueuedMessage:
    """A row of `MESSAGE_COLUMNS` and the positions of the recipients that need no attempt any more."""
    queue_id, state, next_attempt_at, received_at, size, attempts, hold_reason, text = row[:8]
    envelope = decode_envelope(queue_id, received_at, size, text)
    done = frozenset(finished)
    pending = envelope.recipients
    if done:
        pending = tuple(recipient for place, recipient in enumerate(pending) if place not in done)
    return QueuedMessage(envelope, STATES[state], attempts, pending, next_attempt_at, hold_reason)


def whole_of(row: Sequence[Any]) -> QueuedMessage:
    """A row that begins like `MESSAGE_COLUMNS`, with all recipients; at its end is the key."""
    whole = message_of(row, ())
    if row_key(whole.queue_id) != row[-1]:
        raise ValueError("its queue id is of another row")
    return whole


def part_of(row: Sequence[Any]) -> QueuedMessage:
    """A row of `PART_COLUMNS`, the positions of finished recipients as JSON, and at its end the key."""
    whole = whole_of(row)
    number, destination, positions, warned, finished = row[8:13]
    done = frozenset(json.loads(finished))
    everyone = whole.envelope.recipients
    places = range(len(everyone)) if positions is None else json.loads(positions)
    pending = everyone
    if positions is not None or done:
        if not places or min(places) < 0:
            raise ValueError("it does not say which its recipients are")
        pending = tuple(everyone[place] for place in places if place not in done)
    return replace(whole, pending=pending, part=number, destination=destination, warned=bool(warned))
