"""Signs what leaves with a shared secret: an HMAC of the body, in a header field."""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    REQUIRED,
    ConfigError,
    Envelope,
    Fault,
    IPolicyPlugin,
    ISigner,
    OutgoingMessage,
    Services,
    setting,
)


@dataclass(frozen=True)
class StampOptions:
    """The keys of [policy.stamp]."""

    secret_file: str = setting(REQUIRED, "The file with the secret.")


@implementer(ISigner)
class Stamp:
    """The policy: called last of all, with the message as it will be stored."""

    def __init__(self, secret: bytes, services: Services) -> None:
        self._secret = secret
        self._threads = services.threads

    async def sign(self, envelope: Envelope, message: OutgoingMessage) -> None:
        with message.open() as file:
            stamp = await self._threads(self._stamp_of, file)
        message.add_header("X-Stamp", stamp)

    def _stamp_of(self, file: BinaryIO) -> str:
        """Read the message in blocks, in a thread: it may be large."""
        digest = hmac.new(self._secret, digestmod=hashlib.sha256)
        in_body = False
        for line in file:
            if in_body:
                digest.update(line)
            in_body = in_body or line == b"\r\n"
        return digest.hexdigest()


@implementer(IPlugin, IPolicyPlugin)
class StampPlugin:
    """Signs what leaves with a shared secret."""

    name = "stamp"
    contract = "2"
    options = StampOptions

    def build(self, options: StampOptions, services: Services) -> Stamp:
        try:
            secret = Path(options.secret_file).read_bytes().strip()
        except OSError as error:
            raise ConfigError([Fault("", "secret_file", f"can't be read: {error.strerror}")]) from error
        return Stamp(secret, services)
