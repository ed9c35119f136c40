"""ESMTP parameters and their encodings.

RFC 5321 §4.1.1.11, RFC 1870 §3, RFC 6152 §2, RFC 6531 §3.1, RFC 3461 §4, RFC 3461 §4.1, RFC 3461 §4.2,
RFC 3461 §4.3, RFC 3461 §4.4, RFC 4954 §5, RFC 6533 §3.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.envelope import BodyType, MailParameters, Notify, Return
from elemta.smtp import replies
from elemta.smtp.parameters import (
    decode_utf8_address,
    decode_xtext,
    parse_mail_parameters,
    parse_rcpt_parameters,
)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", MailParameters()),
        ("SIZE=0", MailParameters(size=0)),
        ("size=00012", MailParameters(size=12)),
        ("SIZE=99999999999999999999", MailParameters(size=10**20 - 1)),
        ("BODY=7BIT", MailParameters(body=BodyType.SEVEN_BIT)),
        ("body=8bitmime", MailParameters(body=BodyType.EIGHT_BIT)),
        ("SMTPUTF8", MailParameters(smtputf8=True)),
        ("RET=FULL", MailParameters(ret=Return.FULL)),
        ("RET=hdrs", MailParameters(ret=Return.HEADERS)),
        ("ENVID=" + "a" * 100, MailParameters(envid="a" * 100)),
        ("ENVID=a+3Db+20c", MailParameters(envid="a=b c")),
        ("AUTH=<>", MailParameters(auth="")),
        ("AUTH=e+3Dmc2@example.com", MailParameters(auth="e=mc2@example.com")),
        ("  SIZE=1   SMTPUTF8 ", MailParameters(size=1, smtputf8=True)),
    ],
)
def test_mail_parameters(text: str, parameters: MailParameters) -> None:
    assert parse_mail_parameters(text, auth=True) == parameters


@pytest.mark.parametrize(
    "text",
    [
        "SIZE",
        "SIZE=",
        "SIZE=1e30",
        "SIZE=-1",
        "SIZE=+1",
        "SIZE=1.0",
        "SIZE=0x10",
        "SIZE=\u0661",
        "SIZE=" + "9" * 21,
        "SIZE=1 SIZE=1",
        "SIZE=1 size=2",
        "BODY",
        "BODY=9BIT",
        "BODY=BINARYMIME",
        "SMTPUTF8=1",
        "SMTPUTF8=",
        "SMTPUTF8 SMTPUTF8",
        "RET",
        "RET=ALL",
        "ENVID",
        "ENVID=" + "a" * 101,
        "ENVID=a+0Ab",
        "ENVID=a+3db",
        "ENVID=a+b",
        "ENVID=a=b",
        "ENVID=\u00e9",
        "AUTH",
        "AUTH=nobody",
        "AUTH=+FF@b",
        "=1",
        "-SIZE=1",
        "SIZE==1",
    ],
)
def test_bad_mail_parameters(text: str) -> None:
    assert parse_mail_parameters(text, auth=True) == replies.BAD_PARAMETER


@pytest.mark.parametrize(
    "text", ["COLOUR", "COLOUR=blue", "NOTIFY=NEVER", "ORCPT=rfc822;a@b", "XSIZE=1", "AUTH=<>"]
)
def test_unknown_mail_parameters(text: str) -> None:
    assert parse_mail_parameters(text, auth=False) == replies.UNKNOWN_PARAMETER


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("NOTIFY=NEVER", {"notify": Notify.NEVER}),
        ("notify=success,Failure", {"notify": Notify.SUCCESS | Notify.FAILURE}),
        ("NOTIFY=DELAY", {"notify": Notify.DELAY}),
        ("ORCPT=rfc822;a+2Bb@c", {"orcpt": "rfc822;a+b@c"}),
        ("ORCPT=RFC822;a@c", {"orcpt": "rfc822;a@c"}),
        (r"ORCPT=utf-8;j\x{FC}rgen@c", {"orcpt": "utf-8;jürgen@c"}),
        ("ORCPT=utf-8;jürgen@c", {"orcpt": "utf-8;jürgen@c"}),
        # What Postfix makes of an internationalised address.
        ("ORCPT=rfc822;j+C3+BCrgen@c", {"orcpt": "utf-8;jürgen@c"}),
        ("ORCPT=rfc822;" + "a" * 500, {"orcpt": "rfc822;" + "a" * 500}),
    ],
)
def test_rcpt_parameters(text: str, values: dict[str, object]) -> None:
    assert parse_rcpt_parameters(text) == values


@pytest.mark.parametrize(
    "text",
    [
        "NOTIFY",
        "NOTIFY=",
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=SUCCESS,",
        "NOTIFY=ALWAYS",
        "NOTIFY=DELAY NOTIFY=DELAY",
        "ORCPT",
        "ORCPT=a@b",
        "ORCPT=rfc822;",
        "ORCPT=;a@b",
        "ORCPT=rfc822;a+0D+0Ab",
        "ORCPT=rfc822;a b",
        "ORCPT=rfc822;j+FCrgen@c",
        "ORCPT=rfc822;j+C3+BCrgen+0D+0A@c",
        "ORCPT=x400;j+C3+BCrgen@c",
        "ORCPT=rfc822;" + "a" * 501,
        r"ORCPT=utf-8;\x{0A}@c",
        r"ORCPT=utf-8;\x{D800}@c",
        r"ORCPT=utf-8;\x{FFFFFF}@c",
        r"ORCPT=utf-8;\x41@c",
        "ORCPT=rfc822;jürgen@c",
    ],
)
def test_bad_rcpt_parameters(text: str) -> None:
    assert parse_rcpt_parameters(text) in (replies.BAD_PARAMETER, replies.UNKNOWN_PARAMETER)


@given(st.binary(max_size=60))
def test_xtext_stands_for_any_octets(octets: bytes) -> None:
    text = "".join(chr(o) if 33 <= o <= 126 and chr(o) not in "+=" else f"+{o:02X}" for o in octets)
    assert decode_xtext(text) == octets.decode("latin-1")


@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs"]),
        min_size=1,
        max_size=20,
    )
)
def test_utf8_addresses_stand_for_any_letters(letters: str) -> None:
    assert decode_utf8_address("".join(f"\\x{{{ord(letter):02X}}}" for letter in letters)) == letters


@given(st.text(max_size=60))
def test_any_text_is_parameters_or_a_reply(text: str) -> None:
    parse_mail_parameters(text, auth=True)
    parse_rcpt_parameters(text)
    decode_xtext(text)
    decode_utf8_address(text)
