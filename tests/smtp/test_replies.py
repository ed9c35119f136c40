"""The texts that users' scripts know, and what a reply can't carry (RFC 5321 §4.2, RFC 2034 §4)."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp import replies
from elemta.smtp.reply import Reply

CATALOGUE = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}


def test_the_replies_that_are_promised_have_their_texts() -> None:
    assert replies.greeting("mx.test").encode() == b"220 mx.test ESMTP Elemta\r\n"
    assert replies.SENDER_OK.encode() == b"250 2.1.0 Sender OK\r\n"
    assert replies.RECIPIENT_OK.encode() == b"250 2.1.5 Recipient OK\r\n"
    assert replies.START_MAIL_INPUT.encode() == b"354 Start mail input; end with <CRLF>.<CRLF>\r\n"
    assert replies.queued("ID").encode() == b"250 2.0.0 Message accepted for delivery; queued as ID\r\n"
    assert replies.RELAY_DENIED.encode() == b"554 5.7.1 Relay access denied\r\n"
    assert str(replies.TOO_MANY_CONNECTIONS).startswith("421 4.7.0 ")
    assert str(replies.LOCAL_TROUBLE).startswith("451 4.3.0 ")
    assert str(replies.STORAGE_FULL).startswith("452 4.3.1 ")
    assert str(replies.MESSAGE_TOO_BIG).startswith("552 5.3.4 ")


def test_the_class_of_an_enhanced_code_is_that_of_its_reply() -> None:
    for name, reply in CATALOGUE.items():
        if reply.enhanced:
            assert reply.enhanced[0] == str(reply.code)[0], name
            assert re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", reply.enhanced), name
        assert all(len(line) < 500 for line in reply.encode().split(b"\r\n")), name


def test_every_reply_is_told_apart_from_every_other() -> None:
    assert len({str(reply) for reply in CATALOGUE.values()}) == len(CATALOGUE)


@given(st.lists(st.text(max_size=600), max_size=4))
def test_no_text_can_add_a_line_or_an_octet_beyond_ascii(lines: list[str]) -> None:
    encoded = Reply.of(550, "5.7.1", *lines).encode()
    assert encoded.isascii()
    assert encoded.endswith(b"\r\n")
    parts = encoded[:-2].split(b"\r\n")
    assert len(parts) == max(len(lines), 1)
    assert all(re.fullmatch(rb"550[- ]5\.7\.1 [ -~]*", part) and len(part) <= 510 for part in parts)
    assert all(part[3:4] == b"-" for part in parts[:-1])
    assert parts[-1][3:4] == b" "
