"""TLS: every kind of set-up over it, and nothing without a certificate that is good for the name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from cryptography.hazmat.primitives import serialization
from pytest_twisted import ensureDeferred

from elemta.valkey import ValkeyError
from tests.support.certificates import CertificateFiles, make_certificate
from tests.support.tls_forwarder import TLSForwarder
from tests.support.valkey import ValkeyServer
from tests.support.waiting import eventually, failure_of, until

NAME = "valkey.example.test"


def certificate(directory: Path, folder: str, name: str = NAME) -> CertificateFiles:
    (directory / folder).mkdir()
    return make_certificate(directory / folder, name)


@pytest_twisted.async_yield_fixture
async def forward() -> AsyncIterator[Any]:
    made: list[TLSForwarder] = []

    def forward(*arguments: Any, **options: Any) -> TLSForwarder:
        made.append(TLSForwarder(*arguments, **options))
        return made[-1]

    yield forward
    for each in made:
        await each.stop()


async def why(valkey: Any, words: str) -> None:
    """Waits until a command fails for this reason."""

    async def said() -> bool:
        error = await failure_of(valkey.command("PING"))
        assert isinstance(error, ValkeyError)
        return words in str(error)

    await eventually(said)
    assert not valkey.up


@ensureDeferred
async def test_a_server_is_verified_by_the_authorities_and_the_name_of_the_url(
    server: ValkeyServer, connect: Any, forward: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "a")
    port = forward(files, server.port).port
    good = f"valkeys://127.0.0.1:{port}/3?ca={files.certificate}&tls_server_name={NAME}"
    valkey = await connect(good)
    await valkey.command("SET", "here", 1)
    assert b"db=3" in server.command("CLIENT", "LIST", "TYPE", "normal")
    another_name = await connect(good.replace(NAME, "other.example.test"), up=False)
    await why(another_name, "its certificate is not one of")
    another_authority = certificate(tmp_path, "b")
    stranger = await connect(
        good.replace(str(files.certificate), str(another_authority.certificate)), up=False
    )
    await why(stranger, "certificate verify failed")
    systems_authorities = await connect(f"valkeys://127.0.0.1:{port}?tls_server_name={NAME}", up=False)
    await why(systems_authorities, "certificate verify failed")


@ensureDeferred
async def test_a_server_that_wants_a_certificate_gets_it(
    server: ValkeyServer, connect: Any, forward: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "server")
    mine = certificate(tmp_path, "client", "mx1.example.test")
    port = forward(files, server.port, authorities=mine).port
    url = f"valkeys://127.0.0.1:{port}?ca={files.certificate}&tls_server_name={NAME}"
    without = await connect(url, up=False)
    valkey = await connect(f"{url}&certificate={mine.certificate}&private_key={mine.key}")
    assert await valkey.command("PING") == b"PONG"
    assert not without.up


@ensureDeferred
async def test_files_that_appear_later_are_read_then(
    server: ValkeyServer, connect: Any, forward: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "a")
    port = forward(files, server.port).port
    authorities = tmp_path / "ca.pem"
    valkey = await connect(f"valkeys://127.0.0.1:{port}?ca={authorities}&tls_server_name={NAME}", up=False)
    await why(valkey, "No such file")
    authorities.write_text("nothing yet")
    await why(valkey, "a file for TLS can't be used")
    authorities.write_bytes(files.certificate.read_bytes() + b"\n")
    await until(lambda: valkey.up)


@ensureDeferred
async def test_a_key_that_needs_a_passphrase_is_refused_and_nobody_is_asked_for_it(
    server: ValkeyServer, connect: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "a")
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    own = f"certificate={files.certificate}&private_key={files.key}"
    valkey = await connect(f"valkeys://127.0.0.1:{server.port}?ca={files.certificate}&{own}", up=False)
    await why(valkey, "needs a passphrase")


@ensureDeferred
async def test_a_server_that_speaks_no_tls_is_not_used(server: ValkeyServer, connect: Any) -> None:
    valkey = await connect(f"valkeys://{server.address}", up=False)
    await why(valkey, "no answer in time")


@ensureDeferred
async def test_sentinels_and_the_primary_that_they_name_are_reached_over_tls(
    server: ValkeyServer, connect: Any, forward: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "a")
    # To the client the primary is where TLS is; that the Sentinel can't talk to it there is no matter here.
    forward(files, server.port, port=server.port, interface="127.0.0.2")
    with ValkeyServer("--sentinel", **{"sentinel monitor limits": f"127.0.0.2 {server.port} 1"}) as sentinel:
        port = forward(files, sentinel.port).port
        valkey = await connect(
            f"valkeys+sentinel://127.0.0.1:{port}/limits?ca={files.certificate}&tls_server_name={NAME}"
        )
        assert int((await valkey.command("CONFIG", "GET", "port"))[1]) == server.port


@ensureDeferred
async def test_every_node_of_a_cluster_is_reached_over_tls(
    connect: Any, forward: Any, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "a")
    with ValkeyServer(cluster_enabled="yes", cluster_announce_ip="127.0.0.2") as node:
        node.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        forward(files, node.port, port=node.port, interface="127.0.0.2")
        seed = forward(files, node.port).port
        valkey = await connect(
            f"valkeys+cluster://127.0.0.1:{seed}?ca={files.certificate}&tls_server_name={NAME}"
        )
        assert await valkey.command("CLUSTER", "MYID", key=b"k") == node.command("CLUSTER", "MYID")
