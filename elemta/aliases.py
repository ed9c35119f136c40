"""Aliases: addresses of local domains whose mail goes to other addresses.

A file has one mapping a line, ``left  right[, right …]``. Left is ``user@domain``, ``name`` (at every local
domain) or ``@domain``; right are addresses and ``@domain`` (the same local-part there). Of the lines that
match an address the longest counts, in this order: the whole address, the address without its tag, the name,
the name without its tag, the domain. A tag that the line does not name goes on to the address on the right.

A line is never applied to its own addresses on the right: ``anna@example.com  anna@example.com, b@c.example``
keeps a copy. Any longer way back to a line is a loop, and a fault of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from elemta.address import Address
from elemta.address_files import parse_listed_address, parse_local, read_lines, shortened, split_words
from elemta.bounded_map import BoundedMap
from elemta.errors import ConfigError, Fault
from elemta.mailbox import MailboxKeys, canonical_domain, folded_address, folded_local

# RFC 5321 §4.5.3.1.1: a tag is left out where the local-part would become longer than any host must take.
_LONGEST_WITH_TAG = 64
_REMEMBERED = 1024
# An expansion with more addresses than this is made anew each time.
_MOST_REMEMBERED = 20_000
# No character of a folded address
_SAMPLE = "\x00"
_NO_EQUIVALENT = "pipes, files and :include: have no equivalent: docs/aliases.md"


@dataclass(frozen=True, slots=True, eq=False)
class AliasLine:
    """One line: its number, the left side folded, and where its mail goes.

    ``left`` is ``local@domain``, ``local`` or ``@domain``. A target without a local-part is ``@domain``.
    """

    number: int
    left: str
    targets: tuple[Address, ...]

    @property
    def keeps_local(self) -> bool:
        """Whether the local-part of an address decides where its mail goes."""
        return not all(target.local for target in self.targets)

    @property
    def sample(self) -> Address:
        """An address that the line is for; its domain is empty where the line is for every local domain."""
        local, at, domain = self.left.rpartition("@")
        return Address(local or _SAMPLE, domain) if at else Address(domain, "")


@dataclass(frozen=True, slots=True)
class _Match:
    """The line that counts for an address, and the tag (with its delimiter) that the line does not name."""

    line: AliasLine
    tag: str
    base: str
    domain: str


_Step = tuple[int, str, str, str]
"""The application of a line to an address: number, local-part, domain, and the kind of its tag."""

Way = tuple[int, str, str, str]
"""Where an address leads: equal for two addresses that lead the same way, tags apart."""

_ANY_TAG = "+"
"""The kind of a tag that no line names. All of them lead the same way."""


@dataclass(frozen=True, slots=True)
class Aliases:
    """The aliases of the local domains of ``keys``."""

    keys: MailboxKeys
    lines: tuple[AliasLine, ...] = ()
    _by_left: dict[str, AliasLine] = field(init=False, repr=False, compare=False, default_factory=dict)
    _targets: frozenset[Address] = field(init=False, repr=False, compare=False, default=frozenset())
    # Local-parts with a tag on the left, by domain ("": every local one) and local-part without the tag
    _tagged: dict[tuple[str, str], list[str]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _named_tags: set[str] = field(init=False, repr=False, compare=False, default_factory=set)
    _expanded: BoundedMap[tuple[int, str, str, bool, str, int], tuple[Address, ...]] = field(
        init=False, repr=False, compare=False, default_factory=lambda: BoundedMap(_REMEMBERED)
    )

    def __post_init__(self) -> None:
        named = (each for line in self.lines for each in line.targets if each.local)
        targets = frozenset(self.keys.mailbox(each) for each in named if self.keys.is_local(each.domain))
        object.__setattr__(self, "_targets", targets)
        for line in self.lines:
            self._by_left[line.left] = line
            base, tag = self.keys.split_tag(line.sample.local)
            if tag:
                self._tagged.setdefault((line.sample.domain, base), []).append(line.sample.local)
                self._named_tags.add(tag)
        if self.lines and self.keys.delimiter:
            # With one of these an address may be a mailbox as it stands, and lead elsewhere than with others.
            tags = {self.keys.split_tag(entry.rpartition("@")[0])[1] for entry in self.keys.listed}
            self._named_tags.update({tag for tag in tags if tag})

    def __bool__(self) -> bool:
        return bool(self.lines)

    def names(self, address: Address) -> bool:
        """Whether a line names exactly this address on its left."""
        folded, domain = folded_local(address.local), canonical_domain(address.domain)
        return domain in self.keys.local and (
            f"{folded}@{domain}" in self._by_left or (folded in self._by_left and "@" not in folded)
        )

    def leads_to(self, mailbox: Address) -> bool:
        """Whether a line names this local mailbox on its right."""
        return mailbox in self._targets

    def expand(self, address: Address, most: int) -> tuple[Address, ...]:
        """The addresses that mail for ``address`` goes to, one for each mailbox; itself without an alias.

        With more than ``most`` of them there are ``most + 1`` and no more: it is too many.
        """
        match = self._match(address)
        if match is None:
            return (address,)
        found = self._finals(match, address, most)
        if self._kind(match.tag) != _ANY_TAG:
            return found
        placeholder = self.keys.delimiter + _SAMPLE
        return tuple(_with_real_tag(each, placeholder, match.tag) for each in found)

    def count(self, address: Address, most: int) -> int:
        """How many addresses :meth:`expand` gives, which is found out in less time."""
        match = self._match(address)
        return 1 if match is None else len(self._finals(match, address, most))

    def way(self, address: Address) -> Way | None:
        """What is the same for all spellings and tags of an alias; None for an address that is none."""
        match = self._match(address)
        if match is None:
            return None
        kind = self._kind(match.tag)
        local = (match.base, match.domain) if match.line.keeps_local else ("", "")
        return match.line.number, *local, "" if kind == _ANY_TAG else kind

    def _finals(self, match: _Match, address: Address, most: int) -> tuple[Address, ...]:
        """Where a matched address leads; a placeholder stands for a tag that no line names.

        So the result is the same for all tags, and is remembered. Without that a client could have a large
        alias expanded for each of its commands.
        """
        kind, local = self._kind(match.tag), address.local
        if kind == _ANY_TAG:
            local = f"{self.keys.split_tag(local)[0]}{self.keys.delimiter}{_SAMPLE}"
        # Quotes make no other address, but they are sent on.
        named = (local, match.domain, address.unquoted) if match.line.keeps_local else ("", "", False)
        key = match.line.number, *named, kind, most
        known = self._expanded.get(key)
        if known is None:
            known = self._expand(replace(address, local=local), most)
            if len(known) <= _MOST_REMEMBERED:
                self._expanded.keep(key, known)
        return known

    def _expand(self, address: Address, most: int) -> tuple[Address, ...]:
        found: dict[Address, Address] = {}
        applied: set[_Step] = set()
        waiting: list[tuple[Address, AliasLine | None]] = [(address, None)]
        while waiting and len(found) <= most:
            each, by = waiting.pop()
            match = self._match(each)
            if match is None or match.line is by:
                found.setdefault(self.keys.mailbox(each), each)
            elif (step := self._step(match)) not in applied:
                applied.add(step)
                waiting.extend((target, match.line) for target in reversed(_targets_of(match, each)))
        return tuple(found.values())

    def _step(self, match: _Match) -> _Step:
        return match.line.number, match.base, match.domain, self._kind(match.tag)

    def _kind(self, tag: str) -> str:
        if len(tag) < 2:
            return ""
        folded = folded_local(tag)
        return folded if folded in self._named_tags else _ANY_TAG

    def _match(self, address: Address) -> _Match | None:
        by_left, domain = self._by_left, canonical_domain(address.domain)
        if not by_left or domain not in self.keys.local:
            return None
        folded = folded_local(address.local)
        base, tag = self.keys.split_tag(address.local)
        if tag and f"{folded}@{domain}" in self.keys.listed:
            # A mailbox as it stands: an alias of another one with a shorter name is not for it.
            base, tag = address.local, ""
        bare = folded_local(base)
        # Alone it would be taken for an address.
        name, bare_name = ("", "") if "@" in folded else (folded, bare)
        for left, unnamed in (
            (f"{folded}@{domain}", ""),
            (f"{bare}@{domain}", tag),
            (name, ""),
            (bare_name, tag),
        ):
            line = by_left.get(left)
            if line is not None:
                return _Match(line, unnamed, bare, domain)
        if not self.keys.listed.isdisjoint((f"{folded}@{domain}", f"{bare}@{domain}")):
            # A mailbox goes before the alias of a whole domain.
            return None
        line = by_left.get(f"@{domain}")
        return None if line is None else _Match(line, tag, bare, domain)

    # Loops

    def faults(self, path: str) -> Iterator[Fault]:
        """Every line that leads into a loop, one for each loop. ``path`` is the file."""
        done: set[_Step] = set()
        for line in self.lines:
            sample = line.sample
            base, tag = self.keys.split_tag(sample.local)
            own = folded_address(sample.local, sample.domain)
            targets = _targets_of(_Match(line, "", base, sample.domain), sample)
            if all(folded_address(each.local, each.domain) == own for each in targets):
                yield _line_fault(path, line.number, f'"{line.left}" leads to itself and nowhere else')
                continue
            loop = self._loop_behind(line, self._variants(targets, tagged=not tag), done)
            if loop:
                way = " → ".join(loop if len(loop) <= 8 else [*loop[:7], "…", loop[-1]])
                yield _line_fault(path, line.number, f"leads into a loop: {way}")

    def cautions(self, path: str, most: int) -> Iterator[Fault]:
        """Lines that are allowed, and do nothing or can get no mail: a message has ``most`` recipients."""
        for line in self.lines:
            sample = line.sample
            domain = sample.domain or min(self.keys.local, default="")
            if not self.keys.is_local(domain):
                yield _line_fault(path, line.number, f'"{line.left}" has no effect: the domain is not local')
            elif len(self.expand(Address(sample.local, domain), most)) > most:
                problem = (
                    f'"{line.left}" leads to more than {most} mailboxes: each RCPT for it gets 452 4.5.3'
                )
                yield _line_fault(path, line.number, problem, "raise server.max_recipients")

    def _loop_behind(self, line: AliasLine, targets: Iterable[Address], done: set[_Step]) -> list[str]:
        """The addresses of a loop that mail by this line runs into; empty without one.

        The walk keeps its path of steps: a step that is on it already closes a loop. ``done`` are steps that
        lead into none that is not reported yet.
        """
        path: dict[_Step, str] = {}
        loop: list[str] = []
        waiting: list[tuple[Address, AliasLine] | None] = [(target, line) for target in targets]
        while waiting:
            item = waiting.pop()
            if item is None:
                done.add(path.popitem()[0])
                continue
            address, by = item
            match = self._match(address)
            if match is None or match.line is by:
                continue
            step = match.line.number, match.base, match.domain, _ANY_TAG if match.tag else ""
            if step in path:
                steps = list(path)
                loop = loop or [path[each] for each in (*steps[steps.index(step) :], step)]
            elif step not in done:
                path[step] = f"{match.base}@{match.domain}".replace(_SAMPLE, "")
                waiting.append(None)
                further = _targets_of(_Match(match.line, "", match.base, match.domain), address)
                waiting.extend((each, match.line) for each in self._variants(further, tagged=bool(match.tag)))
        return loop

    def _variants(self, targets: Iterable[Address], *, tagged: bool) -> Iterator[Address]:
        """The addresses whose ways may differ where some tag is kept, and these without it."""
        for target in targets:
            yield target
            if tagged and self.keys.delimiter:
                domain = canonical_domain(target.domain)
                base = folded_local(self.keys.split_tag(target.local)[0])
                named = (self._tagged.get((where, base), ()) for where in (domain, ""))
                for local in (f"{target.local}{self.keys.delimiter}{_SAMPLE}", *chain.from_iterable(named)):
                    yield Address(local, target.domain)


def _targets_of(match: _Match, address: Address) -> tuple[Address, ...]:
    """Where a line sends the mail of one address."""
    return tuple(
        replace(address, domain=target.domain) if not target.local else _with_tag(target, match.tag)
        for target in match.line.targets
    )


def _with_tag(target: Address, tag: str) -> Address:
    if len(tag) < 2 or len((target.local + tag).encode("utf-8", "surrogatepass")) > _LONGEST_WITH_TAG:
        return target
    return replace(target, local=target.local + tag)


def _with_real_tag(address: Address, placeholder: str, tag: str) -> Address:
    if not address.local.endswith(placeholder):
        return address
    return _with_tag(replace(address, local=address.local.removesuffix(placeholder)), tag)


# The file


def read_aliases(path: str, keys: MailboxKeys) -> tuple[AliasLine, ...]:
    """The lines of a file of aliases. ConfigError: it can't be read, or has lines that can't be used."""
    lines: dict[str, AliasLine] = {}
    faults: list[Fault] = []
    for number, text in read_lines(path, "domains.aliases"):
        line = _line(path, number, text, faults)
        if line is None:
            continue
        earlier = lines.setdefault(line.left, line)
        if earlier is not line:
            problem = f'found "{shortened(line.left)}": line {earlier.number} has it already'
            faults.append(_line_fault(path, number, problem, "write all of its addresses in one line"))
    aliases = Aliases(keys, tuple(lines.values()))
    faults.extend(aliases.faults(path))
    if faults:
        raise ConfigError(sorted(faults, key=_number))
    return aliases.lines


def _number(fault: Fault) -> int:
    return int(fault.key.rpartition(" ")[2])


def _line(path: str, number: int, text: str, faults: list[Fault]) -> AliasLine | None:
    words = split_words(text)
    if words is None or not words[1]:
        problem = (
            f'found "{shortened(text)}": must be a left side, a blank, and addresses with commas between'
        )
        faults.append(_line_fault(path, number, problem, _syntax_hint(text)))
        return None
    left, targets = _left(words[0]), []
    if left is None:
        problem = f'found "{shortened(words[0])}": must be user@domain, name or @domain'
        faults.append(_line_fault(path, number, problem, _left_hint(words[0])))
    for word in words[1]:
        target = parse_listed_address(word)
        if target is None:
            problem = f'found "{shortened(word)}": must be an address or @domain'
            faults.append(_line_fault(path, number, problem, _right_hint(word)))
        else:
            targets.append(target)
    if left is None or len(targets) < len(words[1]):
        return None
    return AliasLine(number, left, tuple(dict.fromkeys(targets)))


def _left(word: str) -> str | None:
    if "@" not in word or (word.startswith('"') and word.endswith('"')):
        name = parse_local(word)
        return None if name is None or "@" in name else folded_local(name)
    address = parse_listed_address(word)
    if address is None:
        return None
    return folded_address(address.local, address.domain)


def _syntax_hint(text: str) -> str:
    words = text.split()
    if text.endswith(",") or (len(words) > 2 and "," not in text):
        return "all of it in one line, with commas between the addresses"
    return "a colon does not belong here" if words[0].endswith(":") else ""


def _left_hint(word: str) -> str:
    return f'did you mean "{word.rstrip(":")}"? there is no colon' if word.endswith(":") else ""


def _right_hint(word: str) -> str:
    if word.lstrip('"')[:1] in ("|", "/", ":"):
        return _NO_EQUIVALENT
    if "@" not in word:
        return f'with its domain, such as "{word}@example.com"' if parse_local(word) else ""
    return ""


def _line_fault(path: str, number: int, problem: str, hint: str = "") -> Fault:
    return Fault(path, f"line {number}", problem, hint)
