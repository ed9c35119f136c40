"""From the recipients that a client names to the copies: one a mailbox, with what the sender asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.aliases import Aliases, AliasLine
from elemta.domains import Domains
from elemta.envelope import Envelope, MailParameters, Notify, Recipient
from elemta.message.notice import DsnAction
from elemta.net.expansion_notices import expansion_notice
from elemta.net.recipients import RecipientCount, final_recipients
from elemta.smtp.session_info import TransactionInfo


def address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain)


def line(number: int, left: str, *right: str) -> AliasLine:
    return AliasLine(number, left, tuple(map(address, right)))


DOMAINS = Domains(
    frozenset({"d.example", "e.example"}),
    delimiter="+",
    alias_lines=(
        line(1, "one@d.example", "bob@other.example"),
        line(2, "two@d.example", "anna@d.example", "bob@other.example"),
        line(3, "own@d.example", "own@d.example", "copy@other.example"),
        line(4, "anna+lists@d.example", "lists@other.example"),
        line(5, "many@d.example", *(f"u{number}@other.example" for number in range(20))),
        line(6, "@e.example", "@d.example"),
    ),
)
ALL = Notify.SUCCESS | Notify.FAILURE | Notify.DELAY


def copies(*named: Recipient | str, most: int = 100) -> list[tuple[str, Notify | None, str | None]]:
    given = [Recipient(address(each)) if isinstance(each, str) else each for each in named]
    found = final_recipients(DOMAINS, given, most)
    assert found is not None
    return [(str(each.address), each.notify, each.orcpt) for each in found.recipients]


@pytest.mark.parametrize(
    ("named", "left"),
    [
        (["dup@d.example", "Dup@D.example", "dup+x@d.example"], ["dup@d.example"]),
        (["Dup+x@d.example", "dup@d.example"], ["Dup+x@d.example"]),
        (["a@other.example", "A@other.example", "a@OTHER.example."], ["a@other.example", "A@other.example"]),
        (["a+x@other.example", "a@other.example"], ["a+x@other.example", "a@other.example"]),
        (["two@d.example", "anna+t@d.example"], ["anna+t@d.example", "bob@other.example"]),
        (["anna@d.example", "two@e.example"], ["anna@d.example", "bob@other.example"]),
        (["anna+lists@d.example", "anna@d.example"], ["lists@other.example", "anna@d.example"]),
        (["one@d.example", "two@d.example", "ONE@e.example"], ["bob@other.example", "anna@d.example"]),
        (["own@d.example"], ["own@d.example", "copy@other.example"]),
        (["a..b@d.example", "A..b@e.example", "c.@d.example"], ["a..b@d.example", "c.@d.example"]),
    ],
)
def test_each_mailbox_gets_one_copy_by_the_name_that_came_first(named: list[str], left: list[str]) -> None:
    found = final_recipients(DOMAINS, [Recipient(address(each)) for each in named], 100)
    assert found is not None
    assert [f"{each.address.local}@{each.address.domain}".rstrip(".") for each in found.recipients] == left


@pytest.mark.parametrize("notify", [None, Notify.NEVER, Notify.SUCCESS, Notify.FAILURE, ALL])
@pytest.mark.parametrize("orcpt", [None, "rfc822;sales@client.example"])
def test_of_one_address_the_requests_go_on_as_they_are(notify: Notify | None, orcpt: str | None) -> None:
    # RFC 3461 §5.2.7.1
    wanted = orcpt or "rfc822;one@d.example"
    named = Recipient(address("one@d.example"), notify, orcpt)
    assert copies(named) == [("bob@other.example", notify, wanted)]


@pytest.mark.parametrize(
    ("notify", "left"),
    [
        (None, None),
        (Notify.NEVER, Notify.NEVER),
        (Notify.SUCCESS, Notify.NEVER),
        (Notify.FAILURE, Notify.FAILURE),
        (ALL, Notify.FAILURE | Notify.DELAY),
    ],
)
def test_of_several_addresses_success_is_told_once_for_the_alias(
    notify: Notify | None, left: Notify | None
) -> None:
    # RFC 3461 §5.2.7.2 (c)
    named = Recipient(address("two@d.example"), notify, "rfc822;x@y.example")
    assert copies(named) == [
        (each, left, "rfc822;x@y.example") for each in ("anna@d.example", "bob@other.example")
    ]
    final = final_recipients(DOMAINS, [named], 100)
    assert final is not None
    envelope = Envelope("Q1", address("a@client.example"), final.recipients, 1.0, 1)
    notice = expansion_notice(envelope, final.aliases)
    asked = notify is not None and Notify.SUCCESS in notify
    assert (notice is not None) is asked is final.wants_notice
    if notice is not None:
        (outcome,) = notice.outcomes
        assert (str(outcome.recipient), notice.action(outcome), notice.status(outcome)) == (
            "two@d.example",
            DsnAction.EXPANDED,
            "2.0.0",
        )
    from_null = Envelope("Q1", NULL, final.recipients, 1.0, 1)
    assert expansion_notice(from_null, final.aliases) is None


def test_what_the_client_names_itself_keeps_its_own_requests() -> None:
    alias = Recipient(address("two@d.example"), Notify.NEVER)
    own = Recipient(address("Anna@d.example"), ALL)
    assert copies(alias, own)[0] == ("Anna@d.example", ALL, None)
    assert copies(own, alias)[0] == ("Anna@d.example", ALL, None)


def test_an_alias_beyond_ascii_names_itself_with_its_address_type() -> None:
    domains = Domains(frozenset({"d.example"}), alias_lines=(line(1, "jürgen@d.example", "j@other.example"),))
    final = final_recipients(domains, [Recipient(address("Jürgen@d.example"))], 9)
    assert final is not None
    assert final.recipients[0].orcpt == "utf-8;Jürgen@d.example"


NAMES = ["one", "two", "own", "anna", "anna+lists", "anna+x", "bob", "Bob", "many", "u1"]
NAMED = st.lists(
    st.builds(
        lambda name, domain: Recipient(Address(name, domain)),
        st.sampled_from(NAMES),
        st.sampled_from(["d.example", "e.example", "other.example"]),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(NAMED, st.integers(1, 30))
def test_the_count_at_rcpt_is_exact(named: list[Recipient], most: int) -> None:
    count = RecipientCount(DOMAINS, most)
    transaction = TransactionInfo(Address("a", "b.example"), MailParameters())
    for recipient in named:
        known = final_recipients(DOMAINS, [*transaction.recipients, recipient], most)
        assert count.admits(transaction, recipient) is (known is not None)
        if known is not None:
            assert len(known.recipients) <= most
            count.accepted(recipient)
            transaction.recipients.append(recipient)
    final = final_recipients(DOMAINS, transaction.recipients, most)
    assert final is not None
    assert len({DOMAINS.mailbox(each.address) for each in final.recipients}) == len(final.recipients)


def test_the_count_begins_anew_with_each_transaction_and_knows_what_policies_removed() -> None:
    count = RecipientCount(DOMAINS, 21)
    for _ in range(2):
        transaction = TransactionInfo(Address("a", "b.example"), MailParameters())
        many, two = (Recipient(address(f"{name}@d.example")) for name in ("many", "two"))
        assert count.admits(transaction, many)
        count.accepted(many)
        transaction.recipients.append(many)
        assert not count.admits(transaction, two)
        transaction.recipients.clear()
        assert count.admits(transaction, two)


def test_an_alias_named_with_another_tag_is_the_same_alias() -> None:
    named = ["many+a@d.example", "MANY+b@D.example", "many@d.example"]
    assert copies(*named) == copies("many+a@d.example")
    assert copies("many+a@d.example")[0] == ("u0+a@other.example", None, "rfc822;many+a@d.example")


def test_no_command_has_a_large_alias_expanded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded: list[Address] = []
    whole = Aliases._expand

    def counted(self: Aliases, address: Address, most: int) -> tuple[Address, ...]:
        expanded.append(address)
        return whole(self, address, most)

    monkeypatch.setattr(Aliases, "_expand", counted)
    people = tuple(address(f"u{number}@d.example") for number in range(900))
    domains = Domains(
        frozenset({"d.example", "e.example"}),
        delimiter="+",
        alias_lines=(AliasLine(1, "all", people), line(2, "@e.example", "all@d.example")),
    )
    count = RecipientCount(domains, 1000)
    transaction = TransactionInfo(Address("a", "b.example"), MailParameters())
    named = [f"all+{number}@d.example" for number in range(300)]
    named += [f"x{number}+{number}@e.example" for number in range(300)]
    named += [f"u{number}+{number}@d.example" for number in range(300)]
    for each in named:
        recipient = Recipient(address(each))
        assert count.admits(transaction, recipient)
        count.accepted(recipient)
        transaction.recipients.append(recipient)
    final = final_recipients(domains, transaction.recipients, 1000)
    assert final is not None
    assert len(final.recipients) == 900
    # Once for each line, and whether there is a tag
    assert len(expanded) <= 4
