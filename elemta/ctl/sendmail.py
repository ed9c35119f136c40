"""``elemta-sendmail``: what programs of a Unix system call to hand over a mail, as ``/usr/sbin/sendmail``.

It speaks SMTP to the daemon on the loopback interface. Nothing is kept here: when the daemon can't be reached
or refuses, the caller hears it (exit status after sysexits.h) and still has the mail. All recipients are
taken, or none, so that trying again makes no doubles.
"""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NoReturn, TextIO

from elemta import __version__
from elemta.ctl.discover import ServerEndpoint, own_name, places, submission
from elemta.ctl.mail_options import SendmailMode, SendmailOptions, UsageFault, read_options
from elemta.ctl.mail_text import Draft, MailFault, read_draft
from elemta.runtime import ProcessRuntime

EX_OK = 0
EX_USAGE = 64
EX_DATAERR = 65
EX_NOUSER = 67
EX_UNAVAILABLE = 69
EX_TEMPFAIL = 75

_LEADING_DOT = re.compile(rb"^\.", re.MULTILINE)
_CONNECT_SECONDS = 10.0
# RFC 5321 §4.5.3.2.6: the answer to the end of the message may take ten minutes
_REPLY_SECONDS = 630.0


class Unsent(Exception):
    """The mail was not accepted: the exit status, and the lines with the reason."""

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.status = status
        self.lines = lines


def main(
    argv: Sequence[str], stdin: BinaryIO, stdout: BinaryIO, stderr: TextIO, environ: Mapping[str, str]
) -> int:
    """Do what the command line, with the program's name first, asks for; the exit status."""
    try:
        return _run(read_options(argv), stdin, stdout, environ)
    except UsageFault as fault:
        return _say(stderr, EX_USAGE, str(fault))
    except MailFault as fault:
        return _say(stderr, EX_DATAERR, str(fault))
    except Unsent as unsent:
        return _say(stderr, unsent.status, *unsent.lines)


def _run(options: SendmailOptions, stdin: BinaryIO, stdout: BinaryIO, environ: Mapping[str, str]) -> int:
    match options.mode:
        case SendmailMode.SUBMIT:
            _submit(options, stdin, environ)
        case SendmailMode.SMTP:
            _speak(places(environ), stdin, stdout)
        case SendmailMode.QUEUE:
            _show_queue()
        case SendmailMode.VERSION:
            stdout.write(f"elemta-sendmail {__version__}\n".encode())
        case SendmailMode.ALIASES:
            pass
    return EX_OK


def _say(stderr: TextIO, status: int, *lines: str) -> int:
    for line in lines:
        printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        stderr.write(f"elemta-sendmail: {printable}\n")
    return status


def _show_queue() -> NoReturn:
    try:
        os.execvp("elemtactl", ["elemtactl", "queue", "list"])  # noqa: S606, S607 - as mailq always did
    except OSError as error:
        raise Unsent(EX_UNAVAILABLE, f"elemtactl can't be run: {error.strerror}") from error


# Submission


def _submit(options: SendmailOptions, stdin: BinaryIO, environ: Mapping[str, str]) -> None:
    now = ProcessRuntime.of_system().wall()
    draft = read_draft(options, stdin, host=own_name(), now=now, settings=submission(environ))
    server = _connected(places(environ), draft)
    try:
        _send(server, options, draft)
    except smtplib.SMTPServerDisconnected as error:
        raise Unsent(EX_TEMPFAIL, f"the daemon went away, and the mail may not be sent: {error}") from error
    except OSError as error:
        raise Unsent(EX_TEMPFAIL, f"the conversation with the daemon failed: {error}") from error
    finally:
        server.close()


def _connected(candidates: Sequence[ServerEndpoint], draft: Draft) -> smtplib.SMTP:
    """A session with the first daemon that answers."""
    tried = []
    for place in candidates:
        server = smtplib.SMTP(local_hostname=draft.host, timeout=_CONNECT_SECONDS)
        try:
            code, text = server.connect(place.host, place.port)
            if code == 220:
                if server.sock is not None:
                    server.sock.settimeout(_REPLY_SECONDS)
                server.ehlo_or_helo_if_needed()
                return server
            tried.append(f"{place}: {code} {_decoded(text)}")
        except OSError as error:
            tried.append(f"{place}: {error}")
        server.close()
    raise Unsent(EX_TEMPFAIL, "no daemon takes mail here; the mail was not sent", *tried)


def _send(server: smtplib.SMTP, options: SendmailOptions, draft: Draft) -> None:
    # The domain may be one that ASCII does not know.
    server.command_encoding = "utf-8" if draft.international else "ascii"
    command = " ".join((f"MAIL FROM:{draft.sender.wire}", *_mail_parameters(server, options, draft)))
    _expect(250, server.docmd(command), draft.sender.wire)
    refused = []
    for recipient in draft.recipients:
        command = " ".join((f"RCPT TO:{recipient.wire}", *_rcpt_parameters(server, options)))
        code, text = server.docmd(command)
        if code not in (250, 251):
            refused.append((code, f"{recipient.text}: {code} {_decoded(text)}"))
    if refused:
        server.docmd("QUIT")
        status = EX_TEMPFAIL if any(code < 500 for code, _ in refused) else EX_NOUSER
        words = [words for _, words in refused]
        raise Unsent(status, "not sent to any recipient, because not every recipient was accepted:", *words)
    _expect(354, server.docmd("DATA"), "the message")
    # RFC 5321 §4.5.2
    server.send(_LEADING_DOT.sub(b"..", draft.content) + b".\r\n")
    _expect(250, server.getreply(), "the message")
    # Sent is sent, whatever becomes of the rest.
    with contextlib.suppress(OSError):
        server.docmd("QUIT")


def _expect(wanted: int, answer: tuple[int, bytes], what: str) -> None:
    code, text = answer
    if code != wanted:
        status = EX_TEMPFAIL if code < 500 else EX_UNAVAILABLE
        raise Unsent(status, f"not sent: {what}: {code} {_decoded(text)}")


def _decoded(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").split())


def _mail_parameters(server: smtplib.SMTP, options: SendmailOptions, draft: Draft) -> list[str]:
    parameters = []
    if draft.eight_bit and server.has_extn("8bitmime"):
        parameters.append("BODY=8BITMIME")
    if draft.international:
        if not server.has_extn("smtputf8"):
            raise Unsent(EX_UNAVAILABLE, "not sent: the server does not take addresses beyond ASCII")
        parameters.append("SMTPUTF8")
    if server.has_extn("dsn"):
        parameters += [f"RET={options.ret}"] if options.ret else []
        parameters += [f"ENVID={options.envid}"] if options.envid else []
    return parameters


def _rcpt_parameters(server: smtplib.SMTP, options: SendmailOptions) -> list[str]:
    return [f"NOTIFY={options.notify}"] if options.notify and server.has_extn("dsn") else []


# A conversation of the caller's own, with -bs


def _speak(candidates: Sequence[ServerEndpoint], stdin: BinaryIO, stdout: BinaryIO) -> None:
    from elemta.ctl.relay_stdio import connect, pipe  # noqa: PLC0415 - most runs do without

    tried = []
    for place in candidates:
        try:
            connection = connect(place, _CONNECT_SECONDS)
        except OSError as error:
            tried.append(f"{place}: {error}")
            continue
        with connection:
            pipe(connection, stdin, stdout)
        return
    # A client that speaks SMTP gets the error in SMTP.
    stdout.write(b"421 4.3.2 no daemon takes mail here\r\n")
    stdout.flush()
    raise Unsent(EX_TEMPFAIL, "no daemon takes mail here", *tried)


def console() -> NoReturn:
    """The entry point of the program."""
    try:
        status = main(sys.argv, sys.stdin.buffer, sys.stdout.buffer, sys.stderr, os.environ)
        sys.stdout.flush()
    except BrokenPipeError:
        status = EX_TEMPFAIL
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    console()
