"""Envelopes come back from their rows as they went in, also those that earlier versions wrote."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.envelope import Client, MailParameters, Notify, Recipient
from elemta.smtp.path import parse_address
from elemta.spool.records import Submission
from elemta.spool.rows import decode_envelope, encode_envelope

ADDRESSES = [NULL, Address("a", "b.test"), parse_address('"a..b"@c.test'), parse_address("a..b@c_d.test", [])]
recipients = st.builds(
    Recipient,
    st.sampled_from(ADDRESSES[1:]),
    st.sampled_from([None, Notify.NEVER, Notify.FAILURE]),
    st.sampled_from([None, "rfc822;x"]),
)


def submission(sender: Address, recipients: tuple[Recipient, ...]) -> Submission:
    return Submission(
        sender=sender,
        recipients=recipients,
        parameters=MailParameters(),
        client=Client(),
        header_block=b"",
        received_at=1.0,
    )


@given(st.sampled_from(ADDRESSES), st.lists(recipients, min_size=1, max_size=3).map(tuple))
def test_addresses_are_kept_as_they_were_written(sender: Address, recipients: tuple[Recipient, ...]) -> None:
    text = encode_envelope(submission(sender, recipients))
    kept = decode_envelope("Q1", 1.0, 1, text)
    assert kept.sender == sender
    assert str(kept.sender) == str(sender)
    assert kept.recipients == recipients
    assert [str(each) for each in kept.recipients] == [str(each) for each in recipients]


def test_what_an_earlier_version_wrote_is_read() -> None:
    value = {"from": ["a..b", "c"], "to": [["a", "b"], ["d..", "e", 2, "rfc822;x"]], "client": [""] * 6}
    kept = decode_envelope("Q1", 1.0, 1, json.dumps(value))
    assert str(kept.sender) == '"a..b"@c'
    assert [str(each) for each in kept.recipients] == ["a@b", '"d.."@e']
