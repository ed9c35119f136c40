"""Twisted without TLS, for a daemon that has no use for it: pyOpenSSL and cryptography take 13 MB."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def without_tls() -> Iterator[None]:
    """Let what is imported meanwhile find no pyOpenSSL.

    Twisted's transports are then those of a host that has none. Nothing changes where pyOpenSSL is there
    already, as with another reactor. It is for the one thread of a process that starts: imports of others
    would find none either.
    """
    if "OpenSSL" in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules["OpenSSL"] = None
    try:
        yield
    finally:
        del modules["OpenSSL"]


def import_txredisapi() -> None:
    """Import txredisapi inside :func:`without_tls`.

    It imports two modules of Twisted for the TLS of its own endpoints, which :mod:`elemta.valkey` does not
    use, and can't do without them. So there are empty ones in their place meanwhile. A version of txredisapi
    that takes more of them is imported with TLS, by its first connection.
    """
    if sys.modules.get("OpenSSL") is not None:
        return
    ssl, tls = ModuleType("twisted.internet.ssl"), ModuleType("twisted.protocols.tls")
    vars(ssl)["ClientContextFactory"] = vars(tls)["TLSMemoryBIOFactory"] = object
    sys.modules[ssl.__name__], sys.modules[tls.__name__] = ssl, tls
    try:
        with suppress(ImportError, AttributeError):
            import_module("txredisapi")
    finally:
        del sys.modules[ssl.__name__], sys.modules[tls.__name__]
