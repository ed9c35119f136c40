"""The policy ``mail-auth`` in a daemon, with zones on a real name server and clients at other addresses."""

from __future__ import annotations

import base64
import smtplib
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dkim
import pytest
from nacl.signing import SigningKey

from tests.mailout.network import Host, Network
from tests.support.daemon import Daemon
from tests.support.nameservers import Nsd

pytestmark = pytest.mark.servers

SERVER = "198.51.100.2"


@dataclass(frozen=True)
class Keys:
    """The keys of author.test: RSA as PEM, and the seed of an Ed25519 key."""

    rsa: bytes
    ed25519: bytes

    def sign(self, content: bytes, selector: str) -> bytes:
        key, algorithm = (self.rsa, b"rsa-sha256") if selector == "rsa" else (self.ed25519, b"ed25519-sha256")
        field: bytes = dkim.sign(
            content, selector.encode(), b"author.test", key, signature_algorithm=algorithm,
            canonicalize=(b"relaxed", b"simple"), include_headers=[b"from", b"subject"],
        )  # fmt: skip
        return field + content


def text_record(name: str, value: str) -> str:
    """A TXT record in strings of at most 255 octets."""
    parts = " ".join(f'"{value[at : at + 200]}"' for at in range(0, len(value), 200))
    return f"{name} TXT ( {parts} )\n"


def make_keys(directory: Path) -> tuple[Keys, str]:
    """The keys, and the records of their public halves."""
    path = directory / "key.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(path), "2048"], check=True, capture_output=True)
    public = subprocess.run(
        ["openssl", "rsa", "-in", str(path), "-pubout"], check=True, capture_output=True, text=True
    ).stdout
    rsa = "".join(line for line in public.splitlines() if not line.startswith("-"))
    seed = SigningKey.generate()
    ed25519 = base64.b64encode(seed.verify_key.encode()).decode()
    records = text_record("rsa._domainkey", f"v=DKIM1; k=rsa; p={rsa}")
    records += text_record("ed._domainkey", f"v=DKIM1; k=ed25519; p={ed25519}")
    return Keys(path.read_bytes(), base64.b64encode(seed.encode())), records


@dataclass(frozen=True)
class World:
    daemon: Daemon
    keys: Keys
    sender: Host  # the host that author.test names in its SPF record
    stranger: Host

    def send(self, host: Host, sender: str, local: str, content: bytes) -> tuple[int, str]:
        client = host.call(lambda: smtplib.SMTP(SERVER, 25, local_hostname="client.test", timeout=60))
        with client:
            client.ehlo()
            assert client.mail(sender)[0] == 250
            assert client.rcpt(f"{local}@example.test")[0] == 250
            code, text = client.data(content)
        return code, text.decode()

    def results(self, local: str) -> str:
        """The field that mail-auth wrote into the only message of a mailbox, in one line."""
        (message,) = self.daemon.wait_for_mail(local)
        header = message.replace(b"\r\n", b"\n").partition(b"\n\n")[0].decode()
        lines = header.replace("\n\t", " ").replace("\n ", " ").split("\n")
        (field,) = [line for line in lines if line.startswith("Authentication-Results:")]
        return " ".join(field.split())


@pytest.fixture(scope="module")
def world(open_directory: Path) -> Iterator[World]:
    keys, records = make_keys(open_directory)
    policy = '"v=DMARC1; p={}"'
    zones = {
        "author.test": '@ TXT "v=spf1 ip4:198.51.100.7 -all"\n_dmarc TXT '
        + policy.format("reject") + "\n" + records,
        "held.test": "@ A 198.51.100.7\n_dmarc TXT " + policy.format("quarantine") + "\n",
        "plain.test": "@ A 198.51.100.7\n",
    }  # fmt: skip
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        nameserver = network.host("dns", 53)
        nsd = Nsd(
            open_directory / "nsd", zones, broken=("broken.test",), place=nameserver,
            address=(str(nameserver.four), 53),
        ).start()  # fmt: skip
        stack.callback(nsd.stop)
        host = network.host("elemta", 2)
        network.use_resolver(host, str(nameserver.four))
        daemon = Daemon(
            open_directory / "node",
            f"""
[[listener]]
name = "world"
endpoint = "tcp:25:interface={SERVER}"
[policies]
chain = ["limits", "relay", "mail-auth"]
[policy.mail-auth]
dmarc = "enforce"
timeout = "30s"
""",
            place=host,
        )
        stack.callback(daemon.kill)
        yield World(daemon.start(), keys, network.host("sender", 7), network.host("stranger", 66))
        daemon.stop()


def message(domain: str, *more: str) -> bytes:
    lines = [
        *more, f"From: Anna <anna@{domain}>", "To: b@example.test", "Subject: s",
        "Date: Mon, 1 Jan 2024 00:00:00 +0000", f"Message-ID: <1@{domain}>", "", "Hello", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("selector", ["rsa", "ed"])
def test_a_signed_message_from_the_domains_own_host_passes_everything(world: World, selector: str) -> None:
    content = world.keys.sign(message("author.test"), selector)
    assert world.send(world.sender, "anna@author.test", f"signed-{selector}", content)[0] == 250
    field = world.results(f"signed-{selector}")
    assert field.startswith("Authentication-Results: mx.example.test;")
    for result in ("spf=pass", "dkim=pass", "dmarc=pass", "header.d=author.test", f"header.s={selector}"):
        assert result in field


def test_a_signed_message_passes_through_a_forwarder(world: World) -> None:
    content = world.keys.sign(world.keys.sign(message("author.test"), "rsa"), "ed")
    assert world.send(world.stranger, "anna@author.test", "forwarded", content)[0] == 250
    field = world.results("forwarded")
    assert "spf=fail" in field
    assert field.count("dkim=pass") == 2
    assert "dmarc=pass" in field


def test_a_forged_message_is_refused_where_the_domain_asks_for_it(world: World) -> None:
    code, text = world.send(world.stranger, "mallory@plain.test", "forged", message("author.test"))
    assert (code, text[:6]) == (550, "5.7.26")
    assert world.daemon.mailbox("forged") == []


def test_a_signed_message_that_was_changed_is_refused(world: World) -> None:
    content = world.keys.sign(message("author.test"), "rsa").replace(b"Hello", b"Hallo")
    code, text = world.send(world.stranger, "mallory@plain.test", "changed", content)
    assert (code, text[:6]) == (550, "5.7.26")


def test_a_forged_message_is_held_where_the_domain_asks_for_quarantine(world: World) -> None:
    code, _ = world.send(world.stranger, "mallory@plain.test", "quarantined", message("held.test"))
    assert code == 250
    assert "mallory@plain.test" in world.daemon.ctl("queue", "list").stdout
    assert world.daemon.mailbox("quarantined") == []


def test_a_field_that_claims_our_name_is_removed_and_that_of_others_stays(world: World) -> None:
    claims = "Authentication-Results: MX.example.test; dmarc=pass header.from=bank.test"
    other = "X-Other: 1"
    content = message("plain.test", claims, other)
    assert world.send(world.stranger, "a@plain.test", "claimed", content)[0] == 250
    field = world.results("claimed")
    assert "bank.test" not in field
    assert "dmarc=none" in field


def test_trouble_with_dns_is_temperror_and_refuses_nothing(world: World) -> None:
    content = message("broken.test")
    assert world.send(world.stranger, "a@broken.test", "trouble", content)[0] == 250
    field = world.results("trouble")
    assert "spf=temperror" in field
    assert "dmarc=temperror" in field


def lag(daemon: Daemon) -> tuple[float, float]:
    """How often the lag of the event loop was measured, and how often it was over 50 ms."""
    name = "elemta_event_loop_lag_seconds"
    count = daemon.metric(f"{name}_count")
    return count, count - daemon.metric(rf'{name}_bucket{{.*le="0\.05"')


@pytest.mark.campaign
def test_the_event_loop_does_not_lag_at_200_messages_a_second_with_three_signatures_each(
    world: World,
) -> None:
    """On a machine that does nothing else."""
    seconds, clients, rate = 20, 8, 200
    plain = message("author.test")
    signed = world.keys.sign(world.keys.sign(world.keys.sign(plain, "rsa"), "ed"), "rsa")
    assert signed.count(b"DKIM-Signature:") == 3
    count_before, over_before = lag(world.daemon)
    late: list[float] = []
    begin = time.monotonic() + 1

    def client(number: int) -> None:
        connection = world.sender.call(
            lambda: smtplib.SMTP(SERVER, 25, local_hostname="client.test", timeout=60)
        )
        with connection:
            for turn in range(seconds * rate // clients):
                due = begin + (turn * clients + number) / rate
                time.sleep(max(0.0, due - time.monotonic()))
                connection.sendmail("anna@author.test", [f"lag{number}@example.test"], signed)
            late.append(time.monotonic() - begin - seconds)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = world.daemon.metric('elemta_plugin_mail_auth_results_total.*method="dkim".*result="pass"')
    count, over = lag(world.daemon)
    measured, exceeded = count - count_before, over - over_before
    said = f"{measured:.0f} measurements of the lag, {exceeded:.0f} over 50 ms"
    print(f"{said}; the last client was {max(late):.1f} s late")
    assert passed >= 3 * seconds * rate
    # The load was there: the daemon kept up with it.
    assert max(late) < 2
    assert exceeded <= measured / 200
