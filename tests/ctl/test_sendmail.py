"""``elemta-sendmail``: what it makes of a mail, and what it says when that is not taken."""

from __future__ import annotations

import io
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from elemta.config import SubmissionConfig
from elemta.ctl.discover import USUAL, ServerEndpoint, places, submission
from elemta.ctl.mail_options import SendmailMode, UsageFault, read_options
from elemta.ctl.mail_text import Draft, MailFault, read_draft
from elemta.ctl.sendmail import main
from tests.support.daemon import Daemon

HOST = "mx.example.test"
CALLER = f"{pwd.getpwuid(os.getuid()).pw_name}@{HOST}"


def draft(text: bytes, *words: str) -> Draft:
    return read_draft(read_options(["sendmail", *words]), io.BytesIO(text), host=HOST, now=0.0)


def recipients(made: Draft) -> list[str]:
    return [mailbox.text for mailbox in made.recipients]


# The command line


def test_the_options_that_programs_give_are_understood() -> None:
    options = read_options(
        ["sendmail", "-t", "-i", "-oem", "-odb", "-FSome One", "-f", "a@example.org", "b@example.org"]
    )
    assert options.from_header
    assert not options.dots
    assert options.full_name == "Some One"
    assert options.sender == "a@example.org"
    assert options.recipients == ("b@example.org",)


@pytest.mark.parametrize(
    "words",
    [
        ["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "-or0s"],
        ["-em", "-v", "-oi"],
        ["-e", "m", "-c", "-x", "-n", "-m", "-U", "-G"],
        ["-Am", "-L", "tag", "-O", "DeliveryMode=b", "-X", "/dev/null", "-C", "sendmail.cf", "-h", "3"],
    ],
)
def test_options_that_say_nothing_here_take_no_recipient(words: list[str]) -> None:
    assert read_options(["sendmail", *words, "b@example.org"]).recipients == ("b@example.org",)


def test_options_may_stand_together_behind_one_dash() -> None:
    options = read_options(["sendmail", "-tif", "a@example.org"])
    assert options.from_header
    assert not options.dots
    assert options.sender == "a@example.org"


@pytest.mark.parametrize(
    ("name", "mode"), [("/usr/bin/mailq", SendmailMode.QUEUE), ("newaliases", SendmailMode.ALIASES)]
)
def test_the_name_that_it_is_called_by_says_what_to_do(name: str, mode: SendmailMode) -> None:
    assert read_options([name]).mode is mode
    assert read_options(["sendmail", "-I"]).mode is SendmailMode.ALIASES


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-f"],
        ["-bd", "a@example.org"],
        ["-z", "a@example.org"],
        ["-N", "never,delay", "a@example.org"],
        ["-R", "some", "a@example.org"],
        ["-V", "with space", "a@example.org"],
    ],
)
def test_a_command_line_that_means_nothing_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageFault):
        read_options(["sendmail", *words])


def test_behind_two_dashes_everything_is_a_recipient() -> None:
    assert read_options(["sendmail", "--", "-t@example.org"]).recipients == ("-t@example.org",)


# The mail


def test_a_mail_gets_what_it_lacks_and_keeps_what_it_has() -> None:
    made = draft(b"Subject: x\nFrom: me@example.org\n\nbody\n", "a@example.org")
    head, _, body = made.content.partition(b"\r\n\r\n")
    assert head.count(b"From:") == 1
    assert b"Date: Thu, 01 Jan 1970" in head
    assert b"Message-ID: <" in head
    assert body == b"body\r\n"
    assert made.sender.text == CALLER


def test_every_line_ends_in_crlf_however_it_was_written() -> None:
    made = draft(b"Subject: x\r\n\none\r\ntwo\nthree\rfour", "a@example.org")
    assert made.content.endswith(b"\r\n\r\none\r\ntwo\r\nthree\r\nfour\r\n")


def test_recipients_of_the_header_are_taken_and_bcc_is_removed() -> None:
    made = draft(
        b"To: One <one@example.org>, two@example.org\nCc: three\nBcc:\n four@example.org\nSubject: x\n\nhi\n",
        "-t",
    )
    assert recipients(made) == ["one@example.org", "two@example.org", f"three@{HOST}", "four@example.org"]
    assert b"four" not in made.content
    assert b"Bcc" not in made.content


def test_of_a_mail_sent_again_only_the_new_recipients_are_taken() -> None:
    made = draft(b"Resent-To: new@example.org\nTo: old@example.org\nBcc: old2@example.org\n\nhi\n", "-t")
    assert recipients(made) == ["new@example.org"]


def test_a_recipient_that_stands_there_twice_gets_one() -> None:
    assert recipients(draft(b"To: a@example.org\n\n", "-t", "a@example.org")) == ["a@example.org"]


def test_a_single_dot_ends_the_mail_unless_it_is_told_not_to() -> None:
    text = b"Subject: x\n\none\n.\ntwo\n"
    assert b"two" not in draft(text, "a@example.org").content
    assert b"\r\n.\r\ntwo" in draft(text, "-oi", "a@example.org").content


def test_a_text_without_a_header_is_all_body() -> None:
    assert draft(b"no header here\nat all\n", "a@example.org").content.endswith(
        b"\r\n\r\nno header here\r\nat all\r\n"
    )


@pytest.mark.parametrize(
    ("word", "named"),
    [
        # As cron does with MAILTO=root,anna@example.org
        ("root,anna@example.org", [f"root@{HOST}", "anna@example.org"]),
        ("anna@example.org, bob@example.org,", ["anna@example.org", "bob@example.org"]),
        ("Anna B <anna@example.org>", ["anna@example.org"]),
        ('"B, Anna" <anna@example.org>,<bob@example.org>', ["anna@example.org", "bob@example.org"]),
        ('"b, anna"@example.org', ['"b, anna"@example.org']),
        (" anna@example.org ", ["anna@example.org"]),
        ("a..b@example.org", ["a..b@example.org"]),
    ],
)
def test_a_word_of_the_command_line_may_name_several_recipients(word: str, named: list[str]) -> None:
    assert recipients(draft(b"Subject: x\n\n", word)) == named


def test_the_sender_may_have_a_name() -> None:
    made = draft(b"\n", "-f", "Anna B <anna@example.org>", "a@example.org")
    assert made.sender.wire == "<anna@example.org>"


@pytest.mark.parametrize("sender", ["a@example.org, b@example.org", "a b@example.org", "<a@example.org> b"])
def test_a_sender_that_is_none_or_several_is_refused(sender: str) -> None:
    with pytest.raises(MailFault):
        draft(b"\n", "-f", sender, "a@example.org")


def test_recipients_that_can_not_be_read_are_not_left_out_in_silence() -> None:
    for field in (b"Cc: a@example.org b@example.org", b"Cc: (a@example.org"):
        with pytest.raises(MailFault):
            draft(b"To: c@example.org\n" + field + b"\n\nhi\n", "-t")


@pytest.mark.parametrize("empty", ["", "<>"])
def test_the_empty_sender_is_nobody(empty: str) -> None:
    assert draft(b"\n", "-f", empty, "a@example.org").sender.wire == "<>"


@pytest.mark.parametrize(
    "text", [b"Subject: nobody\n\n", b"To: undisclosed-recipients:;\n\n", b"To: " + b"(" * 5000 + b"\n\n"]
)
def test_a_mail_for_nobody_is_refused(text: bytes) -> None:
    with pytest.raises(MailFault):
        draft(text, "-t")


@pytest.mark.parametrize(
    "recipient",
    [
        "a b@example.org",
        "a@example.org>\r\nRCPT TO:<b@example.org",
        "@example.org",
        "a@example.org,b c@example.org",
        'a@example.org,"b@example.org',
        "a@example.org,<>",
        "a@example.org,<b@example.org",
        "",
    ],
)
def test_an_address_that_is_none_is_refused(recipient: str) -> None:
    with pytest.raises(MailFault):
        draft(b"\n", "--", recipient)


# Where the daemon is


def test_places_come_from_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text(
        '[[listener]]\nname = "a"\nendpoint = "systemd:domain=INET:index=0"\n'
        '[[listener]]\nname = "b"\nendpoint = "tcp:2600"\n'
        "[[listener]]\nname = \"c\"\nendpoint = 'tcp6:2700:interface=2001\\:db8\\:\\:1'\n"
    )
    found = places({"ELEMTA_CONFIG": str(config)})
    assert found == (
        ServerEndpoint("127.0.0.1", 25),
        ServerEndpoint("127.0.0.1", 2600),
        ServerEndpoint("2001:db8::1", 2700),
    )


def test_who_may_not_read_the_configuration_tries_the_usual_ports(tmp_path: Path) -> None:
    assert places({"ELEMTA_CONFIG": str(tmp_path / "none")}) == USUAL


# The whole way


def environ_for(directory: Path, port: int) -> dict[str, str]:
    config = directory / "elemta.toml"
    config.write_text(f'[[listener]]\nname = "mx"\nendpoint = "tcp:{port}:interface=127.0.0.1"\n')
    return {"ELEMTA_CONFIG": str(config)}


def send(environ: dict[str, str], text: bytes, *words: str) -> tuple[int, str]:
    said = io.StringIO()
    status = main(["sendmail", *words], io.BytesIO(text), io.BytesIO(), said, environ)
    return status, said.getvalue()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("node")).start()
    yield daemon
    daemon.stop()


def test_a_mail_is_taken_by_the_daemon_as_it_was_written(daemon: Daemon, tmp_path: Path) -> None:
    text = "To: someone@example.test\nSubject: grüße\n\n.dots\n..more\nend\n".encode()
    assert send(environ_for(tmp_path, daemon.port), text, "-t", "-oi") == (0, "")
    (mail,) = daemon.wait_for_mail("someone")
    content = mail.replace(b"\r\n", b"\n")
    assert content.endswith(b"\n\n.dots\n..more\nend\n")
    assert "grüße".encode() in content


def test_when_one_recipient_is_refused_nobody_gets_it(daemon: Daemon, tmp_path: Path) -> None:
    status, said = send(
        environ_for(tmp_path, daemon.port), b"\nx\n", "other@example.test", "a@elsewhere.example"
    )
    assert status == 67
    assert "a@elsewhere.example: 554 5.7.1 Relay access denied" in said
    assert not daemon.mailbox("other")


def test_with_bs_the_caller_speaks_to_the_daemon(daemon: Daemon, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "elemta.ctl.sendmail", "-bs"],
        input=b"EHLO me\r\nQUIT\r\n",
        capture_output=True,
        timeout=50,
        check=False,
        env={**os.environ, **environ_for(tmp_path, daemon.port)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(b"220 ")
    assert b"\n221 " in run.stdout


def test_without_a_daemon_the_caller_hears_75(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        status, said = send(environ_for(tmp_path, taken.getsockname()[1]), b"\nx\n", "a@example.test")
    assert status == 75
    assert "the mail was not sent" in said


@pytest.mark.parametrize(("reply", "wanted"), [(b"421 4.3.2 later\r\n", 75), (b"", 75)])
def test_a_daemon_that_does_not_greet_is_one_that_is_down(tmp_path: Path, reply: bytes, wanted: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        status, _ = send(environ_for(tmp_path, server.getsockname()[1]), b"\nx\n", "a@example.test")
        thread.join()
    assert status == wanted


@pytest.mark.parametrize("words", [("to@example.test",), ("-t", "to@example.test")])
def test_blind_copies_stay_blind_unless_the_settings_say_otherwise(words: tuple[str, ...]) -> None:
    text = b"Subject: x\nBCC: a@example.test,\n\tb@example.test\nResent-Bcc : c@example.test\n\nBcc: body\n"
    assert b"bcc" not in draft(text, *words).content.partition(b"\r\n\r\n")[0].lower()
    settings = SubmissionConfig(add_missing=False, remove_bcc=False)
    options = read_options(["sendmail", *words])
    kept = read_draft(options, io.BytesIO(text), host=HOST, now=0.0, settings=settings)
    assert kept.content == text.replace(b"\n", b"\r\n")


def test_the_settings_are_those_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "elemta.toml"
    config.write_text("[submission]\nadd_missing = false\n")
    assert submission({"ELEMTA_CONFIG": str(config)}) == SubmissionConfig(add_missing=False)
    assert submission({"ELEMTA_CONFIG": str(tmp_path / "none")}) == SubmissionConfig()
