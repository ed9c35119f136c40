"""Checkers in order, in time, off the reactor's thread, and slower for clients that guess."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.cred.checkers import FilePasswordDB, ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import makeChecker
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from elemta.auth.authenticator import Authenticator, load_checkers
from elemta.auth.checker import IBlockingChecker, UsersChecker
from elemta.auth.hashes import new_hash
from elemta.config import AuthConfig
from elemta.errors import ConfigError, CredentialsUnavailable
from elemta.runtime import SYSTEM_RANDOMNESS, ProcessRuntime, Runtime
from tests.support.runtime import runtime_of


@implementer(ICredentialsChecker, IBlockingChecker)
class OneUser:
    """Knows one user, and in which threads it was asked."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, name: str = "anna", password: bytes = b"secret") -> None:
        self.name, self.password = name, password
        self.asked = 0
        self.threads: set[int] = set()

    def verify(self, username: str, password: bytes) -> str | None:
        self.asked += 1
        self.threads.add(threading.get_ident())
        return self.name if (username, password) == (self.name, self.password) else None

    def requestAvatarId(self, credentials: object) -> object:
        raise AssertionError("a blocking checker is asked in a thread")


@implementer(ICredentialsChecker)
class Answers:
    """Answers what the test says: a value, an exception or a Deferred."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked = 0

    def requestAvatarId(self, credentials: object) -> object:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@implementer(ICredentialsChecker)
class OnlyDigests:
    credentialInterfaces = (IUsernameHashedPassword,)

    def requestAvatarId(self, credentials: object) -> object:
        raise AssertionError("never asked")


@pytest_twisted.async_yield_fixture
async def started() -> AsyncIterator[list[Authenticator]]:
    """Authenticators that a test puts here are stopped after it."""
    running: list[Authenticator] = []
    yield running
    for authenticator in running:
        await authenticator.stop()


def authenticator(
    started: list[Authenticator], *checkers: object, clock: object = reactor, **options: object
) -> Authenticator:
    made = Authenticator(checkers, runtime_of(reactor, reactor=clock), **options)  # type: ignore[arg-type]
    made.start()
    started.append(made)
    return made


async def guess(checked: Authenticator, user: str = "anna", client: str = "192.0.2.1") -> str:
    """A wrong password, and the wait before the reply."""
    try:
        return await checked.verify(user, b"wrong", client=client)
    except UnauthorizedLogin:
        await checked.pause_after_failure(user, client=client)
        raise


async def refused(attempt: Deferred[str]) -> None:
    with pytest.raises(UnauthorizedLogin):
        await attempt


@ensureDeferred
async def test_good_credentials_give_the_canonical_user_from_a_thread_that_is_not_the_reactors(
    started,
) -> None:
    checker = OneUser()
    assert await authenticator(started, checker).verify("anna", b"secret", client="192.0.2.1") == "anna"
    assert threading.get_ident() not in checker.threads


@ensureDeferred
async def test_the_first_checker_that_knows_the_user_decides_and_later_ones_are_not_asked(started) -> None:
    first, second, third = OneUser("berta"), OneUser("anna"), OneUser("anna")
    assert await authenticator(started, first, second, third).verify("anna", b"secret") == "anna"
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)


@pytest.mark.parametrize("answer", [b"anna", "anna"])
@ensureDeferred
async def test_a_checker_of_twisted_cred_may_answer_octets_or_text(started, answer: object) -> None:
    assert await authenticator(started, Answers(answer)).verify("Anna", b"x") == "anna"


@ensureDeferred
async def test_an_anonymous_avatar_is_nobody(started) -> None:
    await refused(Deferred.fromCoroutine(authenticator(started, Answers(())).verify("anna", b"x")))


@pytest.mark.parametrize("error", [OSError("directory is down"), SystemExit(1), KeyboardInterrupt()])
@ensureDeferred
async def test_a_checker_that_breaks_costs_its_own_answer_only(started, error) -> None:
    broken = Answers(error)
    assert await authenticator(started, broken, OneUser()).verify("anna", b"secret") == "anna"
    assert broken.asked == 1


@ensureDeferred
async def test_when_a_checker_broke_nobody_is_told_that_the_password_was_wrong(started) -> None:
    checked = authenticator(started, Answers(OSError("directory is down")), OneUser())
    with pytest.raises(CredentialsUnavailable):
        await checked.verify("anna", b"wrong")


@ensureDeferred
async def test_a_checker_that_never_answers_is_local_trouble_after_the_deadline(started) -> None:
    clock = Clock()
    silent = Answers(Deferred())
    checked = authenticator(started, silent, OneUser(), clock=clock, deadline=10)
    attempt = Deferred.fromCoroutine(checked.verify("anna", b"secret"))
    clock.advance(9.9)
    assert not attempt.called
    clock.advance(0.2)
    with pytest.raises(CredentialsUnavailable, match="10 seconds"):
        await attempt


@pytest.mark.parametrize("name", ["", "anna\x00", "an\nna", "a" * 256, "\ud800"])
@ensureDeferred
async def test_a_name_with_control_characters_reaches_no_checker(started, name: str) -> None:
    checker = OneUser()
    await refused(Deferred.fromCoroutine(authenticator(started, checker).verify(name, b"secret")))
    assert checker.asked == 0


class Guessing:
    """One client that guesses one user's password, and how long each refusal took."""

    def __init__(self, checked: Authenticator, clock: Clock) -> None:
        self.checked, self.clock = checked, clock

    async def wait_for_refusal(self, client: str = "192.0.2.1", user: str = "anna") -> float:
        attempt = Deferred.fromCoroutine(guess(self.checked, user, client))
        waited = 0.0
        while not attempt.called:
            self.clock.advance(0.5)
            waited += 0.5
            assert waited < 60
        await refused(attempt)
        return waited


@ensureDeferred
async def test_each_failure_in_a_row_waits_longer_up_to_ten_seconds(started) -> None:
    clock = Clock()
    guessing = Guessing(authenticator(started, Answers(UnauthorizedLogin()), clock=clock), clock)
    assert [await guessing.wait_for_refusal() for _ in range(7)] == [1, 2, 4, 8, 10, 10, 10]


@ensureDeferred
async def test_a_failure_slows_neither_another_user_nor_another_client(started) -> None:
    clock = Clock()
    guessing = Guessing(authenticator(started, Answers(UnauthorizedLogin()), clock=clock), clock)
    await guessing.wait_for_refusal()
    await guessing.wait_for_refusal()
    assert await guessing.wait_for_refusal(user="berta") == 1
    assert await guessing.wait_for_refusal(client="192.0.2.2") == 1


@ensureDeferred
async def test_changing_case_or_the_address_within_a_64_is_no_way_around_the_wait(started) -> None:
    clock = Clock()
    guessing = Guessing(authenticator(started, Answers(UnauthorizedLogin()), clock=clock), clock)
    assert await guessing.wait_for_refusal("2001:db8::1", "anna") == 1
    assert await guessing.wait_for_refusal("2001:db8::2:3", "ANNA") == 2
    assert await guessing.wait_for_refusal("2001:db8:0:1::1", "anna") == 1


@ensureDeferred
async def test_a_success_forgets_the_failures(started) -> None:
    clock = Clock()
    answers = Answers(UnauthorizedLogin())
    guessing = Guessing(authenticator(started, answers, clock=clock), clock)
    await guessing.wait_for_refusal()
    await guessing.wait_for_refusal()
    answers.answer = "anna"
    assert await guessing.checked.verify("anna", b"x", client="192.0.2.1") == "anna"
    answers.answer = UnauthorizedLogin()
    assert await guessing.wait_for_refusal() == 1


@ensureDeferred
async def test_a_reload_is_no_amnesty(started) -> None:
    clock = Clock()
    guessing = Guessing(authenticator(started, Answers(UnauthorizedLogin()), clock=clock), clock)
    await guessing.wait_for_refusal()
    successor = Authenticator([Answers(UnauthorizedLogin())], runtime_of(reactor, reactor=clock))
    started.append(successor)
    successor.inherit(guessing.checked)
    assert await Guessing(successor, clock).wait_for_refusal() == 2


@ensureDeferred
async def test_a_session_from_before_a_reload_can_still_ask_and_all_ends_with_the_successor(started) -> None:
    before, after = OneUser("anna"), OneUser("berta")
    previous = authenticator(started, before)
    successor = Authenticator([after], Runtime.of(reactor))
    successor.inherit(previous)
    successor.start()
    started.append(successor)
    await previous.stop()
    assert await previous.verify("anna", b"secret") == "anna"
    assert await successor.verify("berta", b"secret") == "berta"
    await successor.stop()
    with pytest.raises(CredentialsUnavailable):
        await previous.verify("anna", b"secret")


@ensureDeferred
async def test_stopping_the_successor_answers_who_waits_at_its_predecessor(started) -> None:
    clock = Clock()
    previous = authenticator(started, Answers(UnauthorizedLogin()), clock=clock)
    successor = Authenticator([Answers(UnauthorizedLogin())], runtime_of(reactor, reactor=clock))
    started.append(successor)
    successor.inherit(previous)
    attempt = Deferred.fromCoroutine(guess(previous))
    await successor.stop()
    clock.advance(0)
    await refused(attempt)


@ensureDeferred
async def test_local_trouble_is_not_counted_as_a_failure(started) -> None:
    clock = Clock()
    answers = Answers(OSError("down"))
    checked = authenticator(started, answers, clock=clock)
    with pytest.raises(CredentialsUnavailable):
        await checked.verify("anna", b"x", client="192.0.2.1")
    answers.answer = UnauthorizedLogin()
    assert await Guessing(checked, clock).wait_for_refusal() == 1


@ensureDeferred
async def test_stopping_answers_who_still_waits_for_a_refusal(started) -> None:
    clock = Clock()
    checked = authenticator(started, Answers(UnauthorizedLogin()), clock=clock)
    attempt = Deferred.fromCoroutine(guess(checked))
    assert not attempt.called
    await checked.stop()
    clock.advance(0)
    await refused(attempt)
    assert clock.getDelayedCalls() == []


@ensureDeferred
async def test_a_session_that_is_gone_leaves_no_timer_behind(started) -> None:
    clock = Clock()
    checked = authenticator(started, Answers(UnauthorizedLogin()), clock=clock)
    attempt = Deferred.fromCoroutine(guess(checked))
    attempt.addErrback(lambda _: None)
    attempt.cancel()
    assert clock.getDelayedCalls() == []


def test_building_an_authenticator_starts_no_thread() -> None:
    before = threading.active_count()
    built = Authenticator.from_config(AuthConfig(), Runtime.of(reactor))  # type: ignore[arg-type]
    assert not built.enabled
    Authenticator([OneUser()], Runtime.of(reactor))  # type: ignore[list-item,arg-type]
    assert threading.active_count() == before


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"anna:{new_hash(b'secret', SYSTEM_RANDOMNESS)}\n")
    return path


def test_strcred_finds_the_checker_of_elemta_users(users_file: Path) -> None:
    checker = makeChecker(f"elemta-users:{users_file}")
    assert isinstance(checker, UsersChecker)
    assert verifyObject(ICredentialsChecker, checker)
    assert verifyObject(IBlockingChecker, checker)


@ensureDeferred
async def test_the_way_from_the_configuration_to_a_verified_user(started, users_file: Path) -> None:
    config = AuthConfig(checkers=(f"elemta-users:{users_file}",))
    checked = Authenticator.from_config(config, Runtime.of(reactor))
    started.append(checked)
    checked.start()
    assert checked.enabled
    assert await checked.verify("Anna", b"secret", client="192.0.2.1") == "anna"


@ensureDeferred
async def test_another_application_of_twisted_cred_can_use_the_checker(users_file: Path) -> None:
    from twisted.cred.credentials import UsernamePassword

    checker = makeChecker(f"elemta-users:{users_file}")
    assert await checker.requestAvatarId(UsernamePassword(b"ANNA", b"secret")) == b"anna"
    with pytest.raises(UnauthorizedLogin):
        await checker.requestAvatarId(UsernamePassword(b"anna", b"wrong"))


@ensureDeferred
async def test_twisteds_own_checkers_work(started, tmp_path: Path) -> None:
    plain = tmp_path / "passwords"
    plain.write_text("Anna:secret\n")
    made = load_checkers([f"file:{plain}", "memory:berta:other"], ProcessRuntime.of_system())
    assert isinstance(made[0], FilePasswordDB)
    checked = authenticator(started, *made)
    assert await checked.verify("Anna", b"secret") == "Anna"
    assert await checked.verify("berta", b"other") == "berta"


def test_every_checker_that_can_not_be_had_is_a_fault_with_its_key(tmp_path: Path) -> None:
    broken = tmp_path / "users"
    broken.write_text("anna:plain\nberta:plain\n")
    descriptions = [f"elemta-user:{broken}", f"elemta-users:{broken}", "elemta-users:"]
    with pytest.raises(ConfigError) as caught:
        load_checkers(descriptions, ProcessRuntime.of_system(), "/etc/elemta.toml")
    faults = caught.value.faults
    assert {fault.place for fault in faults} == {"/etc/elemta.toml"}
    assert [fault.key for fault in faults] == [f"auth.checkers[{n}]" for n in (1, 2, 2, 3)]
    assert "did you mean elemta-users?" in faults[0].hint
    assert "line 1" in faults[1].problem
    assert "line 2" in faults[2].problem


def test_a_fault_does_not_repeat_a_password_from_the_description() -> None:
    with pytest.raises(ConfigError) as caught:
        load_checkers(["memory:anna:hunter2:odd", "memry:anna:hunter2"], ProcessRuntime.of_system())
    assert "hunter2" not in str(caught.value)
