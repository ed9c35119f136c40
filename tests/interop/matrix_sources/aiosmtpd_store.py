"""An aiosmtpd that takes everything and writes each message to a file."""

import asyncio
import os
import ssl
from pathlib import Path
from uuid import uuid4

from aiosmtpd.smtp import SMTP, AuthResult

e = os.environ
mail = Path(e["MAIL"])


class Store:
    async def handle_DATA(self, server, session, envelope):  # type: ignore[no-untyped-def]
        name = str(uuid4())
        (mail / f"{name}.tmp").write_bytes(envelope.content)
        (mail / f"{name}.tmp").rename(mail / name)
        return "250 stored"


def authenticate(server, session, envelope, mechanism, data):  # type: ignore[no-untyped-def]
    good = (data.login, data.password) == (b"alice", e["AUTH_PASSWORD"].encode())
    return AuthResult(success=good, handled=good)


async def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(e["CERTIFICATE"], e["KEY"])

    def session() -> SMTP:
        return SMTP(
            Store(),
            hostname="aiosmtpd.test",
            tls_context=context,
            enable_SMTPUTF8=True,
            data_size_limit=100_000_000,
            authenticator=authenticate,
            auth_require_tls=False,
        )

    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", int(e["PORT"]))
    await server.serve_forever()


asyncio.run(main())
