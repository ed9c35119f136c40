"""Aliases: which line counts, what an address comes to, and which files are refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemta.address import Address
from elemta.aliases import Aliases, AliasLine, read_aliases
from elemta.config import DomainsConfig
from elemta.domains import Domains
from elemta.errors import ConfigError, Fault
from elemta.mailbox import MailboxKeys
from elemta.smtp.path import parse_address

LOCAL = ("d.example", "e.example")


def address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain)


def domains_of(path: Path, text: str, recipients: str = "", delimiter: str = "+") -> Domains:
    path.mkdir(exist_ok=True)
    (path / "aliases").write_text(text, encoding="utf-8")
    (path / "recipients").write_text(recipients, encoding="utf-8")
    listed = str(path / "recipients") if recipients else ""
    return Domains.from_config(
        DomainsConfig(LOCAL, listed, (), recipient_delimiter=delimiter, aliases=str(path / "aliases"))
    )


def expanded(domains: Domains, text: str) -> list[str]:
    return [str(each) for each in domains.expand(address(text))]


FILE = """
# Who reads what.
postmaster   root@d.example
root         anna@d.example, bob@other.example   # a name is for every local domain

Sales@D.example    anna@d.example,sales@d.example
"a b"@d.example    "x, y"@other.example
anna+urgent@d.example   pager@other.example
anna         Anna.Adams@d.example
@e.example   @d.example
bare+tag     z@d.example
"""


@pytest.mark.parametrize(
    ("named", "leads_to"),
    [
        ("postmaster@d.example", ["Anna.Adams@d.example", "bob@other.example"]),
        ("POSTMASTER@E.Example.", ["Anna.Adams@d.example", "bob@other.example"]),
        ("root+cron@e.example", ["Anna.Adams+cron@d.example", "bob+cron@other.example"]),
        ("sales@d.example", ["Anna.Adams@d.example", "sales@d.example"]),
        ("sales@e.example", ["Anna.Adams@d.example", "sales@d.example"]),
        ("a b@d.example", ["x, y@other.example"]),
        ("anna+Urgent@d.example", ["pager@other.example"]),
        ("anna+urgent@e.example", ["Anna.Adams+urgent@d.example"]),
        ("anna+@d.example", ["Anna.Adams@d.example"]),
        ("bare+tag@e.example", ["z@d.example"]),
        ("bare+other@d.example", ["bare+other@d.example"]),
        ("Nobody+x@e.example", ["Nobody+x@d.example"]),
        ("sales@other.example", ["sales@other.example"]),
        ("", ["@"]),
        ("postmaster@", ["postmaster@"]),
        ("a..b@d.example", ["a..b@d.example"]),
        (f"{'l' * 200}@e.example", [f"{'l' * 200}@d.example"]),
    ],
)
def test_the_longest_line_counts_and_what_it_does_not_name_is_kept(
    tmp_path: Path, named: str, leads_to: list[str]
) -> None:
    found = domains_of(tmp_path, FILE).expand(address(named))
    assert [f"{each.local}@{each.domain}" for each in found] == leads_to


WORDS = {
    "LINE": "must be a left side, a blank, and addresses with commas between",
    "ONE_LINE": "all of it in one line, with commas between the addresses",
    "LEFT_SIDE": "must be user@domain, name or @domain",
    "RIGHT_SIDE": "must be an address or @domain",
    "NO_EQUIVALENT": "pipes, files and :include: have no equivalent: docs/aliases.md",
    "ALL_IN_ONE": "write all of its addresses in one line",
    "LOOP": "leads into a loop:",
}


def test_each_mailbox_is_reached_once_whatever_its_spelling(tmp_path: Path) -> None:
    mine, theirs = "anna@d.example, Anna@D.example, anna+x@d.example", "B@other.example, b@OTHER.example"
    text = f"all  {mine}, {theirs}, more@e.example\n"
    domains = domains_of(tmp_path, f"{text}more  anna+y@d.example, all2@d.example\nall2 anna@d.example")
    assert expanded(domains, "all@d.example") == ["anna@d.example", "B@other.example", "b@other.example"]


def test_an_address_in_recipients_goes_before_the_alias_of_its_domain(tmp_path: Path) -> None:
    domains = domains_of(
        tmp_path,
        "@d.example  boss@other.example\ncarl@d.example bob@d.example",
        "bob@d.example\ncarl@d.example\n@e.example",
    )
    assert expanded(domains, "Bob+tag@d.example") == ["Bob+tag@d.example"]
    assert expanded(domains, "carl@d.example") == ["bob@d.example"]
    assert expanded(domains, "nobody@d.example") == ["boss@other.example"]


def test_a_line_keeps_a_copy_where_it_names_its_own_address(tmp_path: Path) -> None:
    domains = domains_of(
        tmp_path, "anna@d.example  anna@d.example, archive@other.example\n@e.example boss@e.example"
    )
    assert expanded(domains, "anna+x@d.example") == ["anna+x@d.example", "archive+x@other.example"]
    assert expanded(domains, "anybody@e.example") == ["boss@e.example"]
    assert expanded(domains, "boss@e.example") == ["boss@e.example"]


def test_a_target_with_dots_is_carried_as_it_was_written(tmp_path: Path) -> None:
    domains = domains_of(
        tmp_path, 'anna@d.example  user..name@mobile.example, "a..b"@q.example\n@e.example @mobile.example'
    )
    assert expanded(domains, "anna+x@d.example") == [
        "user..name+x@mobile.example",
        '"a..b+x"@q.example',
    ]
    moved = domains.expand(parse_address("b..c@e.example", []))
    assert [str(each) for each in moved] == ["b..c@mobile.example"]


def test_a_tag_never_makes_a_local_part_too_long_for_other_hosts(tmp_path: Path) -> None:
    domains = domains_of(tmp_path, "anna@d.example  carol@other.example")
    assert expanded(domains, f"anna+{'x' * 80}@d.example") == ["carol@other.example"]


def test_without_a_delimiter_there_are_no_tags(tmp_path: Path) -> None:
    domains = domains_of(tmp_path, "anna@d.example  b@other.example", delimiter="")
    assert expanded(domains, "anna+x@d.example") == ["anna+x@d.example"]
    assert domains.mailbox(Address("Anna+X", "d.example")) == Address("anna+x", "d.example")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "a@d.example b@d.example\nb@d.example a@d.example",
            "line 1: {LOOP} b@d.example → a@d.example → b@d.example",
        ),
        (
            "ok b@e.example\n@d.example @e.example\n@e.example @d.example",
            "line 1: {LOOP} b@e.example → b@d.example → b@e.example",
        ),
        (
            "@d.example @e.example\n@e.example @d.example",
            "line 1: {LOOP} @e.example → @d.example → @e.example",
        ),
        (
            "a b@d.example\nb c@e.example\nc a@e.example",
            "line 1: {LOOP} b@d.example → c@e.example → a@e.example → b@d.example",
        ),
        ("a@d.example A@d.example.", 'line 1: "a@d.example" leads to itself and nowhere else'),
        ("@d.example @D.example", 'line 1: "@d.example" leads to itself and nowhere else'),
        (
            "a@d.example b+x@d.example\nb@d.example a+y@d.example",
            "line 1: {LOOP} b@d.example → a@d.example → b@d.example",
        ),
        (
            "@d.example b@e.example\nb@e.example b@d.example, c@other.example",
            "line 1: {LOOP} b@e.example → b@d.example → b@e.example",
        ),
        ("root: a@d.example", 'line 1: found "root:": {LEFT_SIDE} (did you mean "root"? there is no colon)'),
        ("root anna", 'line 1: found "anna": {RIGHT_SIDE} (with its domain, such as "anna@example.com")'),
        ("\n# x\n  root", 'line 3: found "root": {LINE}'),
        ("root a@d.example,", 'line 1: found "root a@d.example,": {LINE} ({ONE_LINE})'),
        ("root a@d.example b@d.example", 'line 1: found "root a@d.example b@d.example": {LINE} ({ONE_LINE})'),
        ("x |/bin/true", 'line 1: found "|/bin/true": {RIGHT_SIDE} ({NO_EQUIVALENT})'),
        ('x "|/bin/true a"', 'line 1: found ""|/bin/true a"": {RIGHT_SIDE} ({NO_EQUIVALENT})'),
        ("x /var/mail/x", 'line 1: found "/var/mail/x": {RIGHT_SIDE} ({NO_EQUIVALENT})'),
        ("x :include:/lists/x", 'line 1: found ":include:/lists/x": {RIGHT_SIDE} ({NO_EQUIVALENT})'),
        ("x <a@d.example>", 'line 1: found "<a@d.example>": {RIGHT_SIDE}'),
        ("x a@b@d.example", 'line 1: found "a@b@d.example": {RIGHT_SIDE}'),
        ("x a@-.example", 'line 1: found "a@-.example": {RIGHT_SIDE}'),
        ("<x@d.example> a@d.example", 'line 1: found "<x@d.example>": {LEFT_SIDE}'),
        ("@ a@d.example", 'line 1: found "@": {LEFT_SIDE}'),
        (
            "a b@d.example\nA@d.example c@d.example\nA c@other.example",
            'line 3: found "a": line 1 has it already ({ALL_IN_ONE})',
        ),
    ],
)
def test_what_cannot_be_used_is_a_fault_with_file_and_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        domains_of(tmp_path, text)
    assert str(caught.value.faults[0]) == f"{tmp_path / 'aliases'}: {fault.format_map(WORDS)}"


@pytest.mark.parametrize(
    "text",
    [
        # Each of these comes back to a line, and to an end all the same.
        "@d.example @e.example\ninfo@e.example anna@d.example",
        "@d.example @e.example\nx@e.example y@d.example\ny@e.example z@other.example",
        "anna@d.example bob@d.example\nbob+shop@d.example anna@d.example",
        "root root@d.example",
        "anna@d.example anna+folder@d.example",
        "x@other.example a@d.example\na@d.example x@other.example",
        "@d.example @e.example, boss@d.example",
    ],
)
def test_a_way_that_ends_is_no_loop(tmp_path: Path, text: str) -> None:
    domains = domains_of(tmp_path, text)
    for named in ("anna", "anna+shop", "bob+shop", "x", "y", "root", "info", "boss"):
        assert all(domains.expand(Address(named, domain)) for domain in LOCAL)


def test_faults_of_both_files_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        domains_of(tmp_path, "x", "not-an-address")
    assert [fault.place for fault in caught.value.faults] == [
        str(tmp_path / "recipients"),
        str(tmp_path / "aliases"),
    ]
    with pytest.raises(ConfigError, match=r"none: domains.aliases: can't be read: No such file or directory"):
        Domains.from_config(DomainsConfig(aliases=str(tmp_path / "none")))


def test_an_expansion_is_bounded(tmp_path: Path) -> None:
    targets = ", ".join(f"u{number}@other.example" for number in range(50))
    domains = domains_of(tmp_path, f"list {targets}\nboth list@d.example, more@other.example")
    for most in (1, 7, 49):
        assert len(domains.expand(address("both@d.example"), most)) == most + 1
    assert len(domains.expand(address("both@d.example"), 51)) == 51


def test_many_ways_to_the_same_lines_take_no_longer_than_the_file_is_long(tmp_path: Path) -> None:
    lines = [f"a{n}@d.example  a{n + 1}+x@d.example, a{n + 1}+y@d.example" for n in range(300)]
    domains = domains_of(tmp_path, "\n".join(lines))
    assert len(expanded(domains, "a0@d.example")) == 1


# No client relays by an alias


@pytest.mark.parametrize(
    "named",
    [
        "target%other.example@d.example",
        "anna+x%other.example@d.example",
        "anna+target@other.example@d.example",
        "other.example!target@e.example",
        "anna+@other.example:target@d.example",
        "anna+\uff20other.example@d.example",
    ],
)
def test_a_local_part_that_names_a_next_hop_does_not_end_here_by_an_alias(tmp_path: Path, named: str) -> None:
    domains = domains_of(
        tmp_path, "anna b@other.example\n@d.example @relay.example\n@e.example x@relay.example"
    )
    assert not domains.ends_here(address(named))


def test_a_listed_alias_may_have_any_letters(tmp_path: Path) -> None:
    domains = domains_of(tmp_path, "a%b@d.example  c@other.example")
    assert domains.ends_here(address("A%b@d.example"))
    assert not domains.ends_here(address("a%b+x%y@d.example"))
    assert not domains.ends_here(address("a%b@e.example"))


# What exists


def test_a_recipient_exists_by_recipients_or_aliases(tmp_path: Path) -> None:
    text = "info@d.example  anna@d.example\nfar b@other.example\n@e.example @d.example"
    domains = domains_of(tmp_path, text, "bob@d.example\n@open.example")
    exist = [
        "bob@d.example",
        "info@d.example",
        "anna+x@d.example",
        "far@e.example",
        "bob+y@e.example",
        "postmaster@e.example",
    ]
    for each in exist:
        assert domains.has_mailbox(address(each)), each
    for each in ("carl@d.example", "carl@e.example", "far@other.example", "@d.example"):
        assert not domains.has_mailbox(address(each)), each
    assert domains.names(address("Anna+x@d.example"))
    assert not domains.names(address("info@d.example"))


def test_who_reads_an_address(tmp_path: Path) -> None:
    domains = domains_of(
        tmp_path, "info anna@d.example, bob@d.example\nsales@d.example info@e.example\nfar x@other.example"
    )
    for user in ("anna", "Anna", "anna@d.example", "anna+x@D.example"):
        for named in ("anna@d.example", "Anna+tag@d.example", "info@e.example", "sales@d.example"):
            assert domains.leads_to(address(named), user), (named, user)
        assert not domains.leads_to(address("bob@d.example"), user)
        assert not domains.leads_to(address("anna@other.example"), user)
    assert domains.leads_to(address("anna@e.example"), "anna")
    assert not domains.leads_to(address("anna@e.example"), "anna@d.example")
    assert domains.leads_to(address("far@d.example"), "x@other.example")


def test_a_listed_mailbox_with_the_delimiter_in_its_name_is_no_tagged_address(tmp_path: Path) -> None:
    listed = "anna@d.example\nanna+maria@d.example\n@e.example"
    aliases = "anna  anna@d.example, archive@e.example\nanna@e.example  far@other.example"
    domains = domains_of(tmp_path, aliases, listed)
    assert expanded(domains, "anna+maria@d.example") == ["anna+maria@d.example"]
    assert expanded(domains, "Anna+Maria@d.example") == ["Anna+Maria@d.example"]
    assert expanded(domains, "anna+shop@d.example") == ["anna+shop@d.example", "archive+shop@e.example"]
    # It is listed at the other domain only.
    assert expanded(domains, "anna+maria@e.example") == ["far+maria@other.example"]
    # An alias of its own it may have.
    domains = domains_of(tmp_path, f"{aliases}\nanna+maria  maria@other.example", listed)
    assert expanded(domains, "anna+maria@d.example") == ["maria@other.example"]


# Against a simple model

NAMES = st.sampled_from(["a", "b", "c"])
TAGS = st.sampled_from(["", "", "", "+t", "+u"])
DOMAINS = st.sampled_from(["d.example", "e.example", "f.example"])
ADDRESSES = st.builds(lambda name, tag, domain: f"{name}{tag}@{domain}", NAMES, TAGS, DOMAINS)
WHOLE = st.builds(lambda domain: f"@{domain}", DOMAINS)
LEFT = st.one_of(ADDRESSES, st.builds("{}{}".format, NAMES, TAGS), WHOLE)
RIGHT = st.lists(st.one_of(ADDRESSES, ADDRESSES, WHOLE), min_size=1, max_size=3)
FILES = st.dictionaries(LEFT, RIGHT, max_size=7)
UNIVERSE = [
    f"{name}{tag}@{domain}"
    for name in "abcz"
    for tag in ("", "+t", "+u", "+v")
    for domain in (*LOCAL, "f.example")
]


class Endless(Exception):
    """The model goes round."""


def model(
    file: dict[str, list[str]], listed: Iterable[str], text: str, by: str = "", depth: int = 0
) -> set[str]:
    """Where an address leads, looked up as the documentation says it, without any care for time."""
    if depth > 40:
        raise Endless
    whole, _, domain = text.rpartition("@")
    name, plus, tag = whole.partition("+")
    if f"{whole}@{domain}" in listed:
        name, plus, tag = whole, "", ""
    if domain not in LOCAL:
        return {text}
    order = [(f"{whole}@{domain}", ""), (f"{name}@{domain}", plus + tag), (whole, ""), (name, plus + tag)]
    if f"{name}@{domain}" not in listed:
        order.append((f"@{domain}", plus + tag))
    for left, kept in order:
        if left in file:
            if left == by:
                break
            found: set[str] = set()
            for right in file[left]:
                local, _, there = right.rpartition("@")
                target = f"{local}{kept}@{there}" if local else f"{whole}@{there}"
                found |= model(file, listed, target, left, depth + 1)
            return found
    return {f"{name}@{domain}"}


@settings(max_examples=150, deadline=None)
@given(FILES, st.sets(st.sampled_from(["a@d.example", "b@e.example", "c+v@d.example"])))
def test_every_file_that_is_accepted_does_what_the_model_does(
    file: dict[str, list[str]], listed: set[str]
) -> None:
    keys = MailboxKeys(frozenset(LOCAL), "+", frozenset(listed))
    lines = tuple(
        AliasLine(number, left, tuple(address(each) for each in right))
        for number, (left, right) in enumerate(file.items())
    )
    aliases = Aliases(keys, lines)
    faulty = any("loop" in fault.problem for fault in aliases.faults("file"))
    endless = False
    for named in UNIVERSE:
        found = aliases.expand(address(named), 1000)
        assert len({keys.mailbox(each) for each in found}) == len(found)
        try:
            wanted = model(file, listed, named)
        except (Endless, RecursionError):
            endless = True
            continue
        if not faulty:
            # Of one address at another host that is reached with several tags, the first is taken.
            assert {_untagged(str(each)) for each in found} == {_untagged(each) for each in wanted}
            assert {str(each) for each in found if each.domain not in LOCAL} <= wanted
    assert faulty or not endless
    if faulty and not any(
        "+" in each for each in (*file, *(right for rights in file.values() for right in rights))
    ):
        assert endless


def _untagged(text: str) -> str:
    local, _, domain = text.rpartition("@")
    return f"{local.partition('+')[0]}@{domain}"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet='ab@."\\ ,#:|\t+é', max_size=20), max_size=5))
def test_no_text_of_a_file_is_worse_than_a_fault(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-aliases"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        found = read_aliases(str(path), MailboxKeys(frozenset(LOCAL), "+"))
        faults: tuple[Fault, ...] = ()
    except ConfigError as error:
        found, faults = (), error.faults
    assert all(fault.place == str(path) and fault.key.startswith("line ") for fault in faults)
    assert all(line.targets for line in found)


MANY = """
x@other.example  a@d.example
list             a@x.example, b@x.example, c@x.example
@other.example   @d.example
more             list@d.example, e@x.example
"""


RAISE = "(raise server.max_recipients)"


def test_lines_that_do_nothing_or_get_no_mail_are_told_as_cautions(tmp_path: Path) -> None:
    path = str(tmp_path / "aliases")
    found = [str(each) for each in domains_of(tmp_path, MANY).aliases.cautions(path, 3)]
    assert found == [
        f'{path}: line 2: "x@other.example" has no effect: the domain is not local',
        f'{path}: line 4: "@other.example" has no effect: the domain is not local',
        f'{path}: line 5: "more" leads to more than 3 mailboxes: each RCPT for it gets 452 4.5.3 {RAISE}',
    ]
