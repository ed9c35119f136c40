"""Clients of the published ports, each with an address of its own."""

from __future__ import annotations

import smtplib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable

#: This host, as other hosts see it: what comes to here keeps its source.
HOST = "198.51.100.1"
SECONDS = 60.0


class Refused(Exception):
    """A reply that is not 2xx; ``code`` of it."""

    def __init__(self, code: int, text: bytes) -> None:
        super().__init__(code, text)
        self.code = code


def connect(port: int, source: str) -> smtplib.SMTP:
    """A session that has been greeted; Refused when the greeting says no."""
    try:
        return smtplib.SMTP(HOST, port, "client.example.net", SECONDS, source_address=(source, 0))
    except smtplib.SMTPConnectError as error:
        raise Refused(error.smtp_code, _octets(error.smtp_error)) from None


def _octets(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def greeting(port: int, source: str) -> str:
    """The first line of a server."""
    with socket.create_connection((HOST, port), SECONDS, source_address=(source, 0)) as connection:
        return connection.makefile().readline().rstrip("\r\n")


def send(port: int, source: str, *, sender: str = "someone@example.net", subject: str = "a test") -> str:
    """The reply to a message in a connection of its own; Refused when there is none."""
    with connect(port, source) as session:
        try:
            session.ehlo()
            for code, text in (session.mail(sender), session.rcpt("box@example.com")):
                if code != 250:
                    raise Refused(code, text)
            code, text = session.data(f"Subject: {subject}\r\n\r\nHello.\r\n")
        except smtplib.SMTPDataError as error:
            raise Refused(error.smtp_code, _octets(error.smtp_error)) from None
        if code != 250:
            raise Refused(code, text)
        return text.decode()


def send_patiently(port: int, source: str, *, subject: str = "a test") -> str:
    """As :func:`send`, but 421 and a lost connection are tried again (RFC 5321 §4.5.4)."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            return send(port, source, subject=subject)
        except (Refused, smtplib.SMTPServerDisconnected) as error:
            final = isinstance(error, Refused) and error.code != 421
            if final or time.monotonic() > until:
                raise
        time.sleep(1)


def page(port: int, path: str) -> tuple[int, str]:
    """Status and text of a page for monitoring, on the loopback interface."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(port: int, start: str) -> float:
    """The sum of the samples of /metrics whose line starts so."""
    lines = page(port, "/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def valkey(*words: str) -> object:
    """The answer to a command on the published port of Valkey: text, a number, None or a list of these."""
    with socket.create_connection(("127.0.0.1", 6379), 10) as connection:
        octets = [word.encode() for word in words]
        connection.sendall(
            b"*%d\r\n" % len(octets) + b"".join(b"$%d\r\n%s\r\n" % (len(o), o) for o in octets)
        )
        stream = connection.makefile("rb")
        return _reply(stream.readline, stream.read)


def _reply(line: Callable[[], bytes], read: Callable[[int], bytes]) -> object:
    head = line().rstrip(b"\r\n")
    if not head:
        raise ConnectionError("Valkey closed the connection")
    kind, rest = head[:1], head[1:].decode()
    if kind == b"*":
        return [_reply(line, read) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == "-1" else read(int(rest) + 2)[:-2].decode()
    if kind == b"-":
        raise AssertionError(rest)
    return int(rest) if kind == b":" else rest


def wait_for(what: str, true: Callable[[], object], seconds: float = 90.0, pause: float = 0.1) -> None:
    """Until ``true()`` is true and raises no OSError; AssertionError with ``what`` after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        assert time.monotonic() < until, what
        time.sleep(pause)
