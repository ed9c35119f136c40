"""An aiosmtpd that writes each message to a file of its own and syncs it before it answers 250."""

# mypy: ignore-errors
from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import uuid4

from aiosmtpd.smtp import SMTP


class Store:
    """What aiosmtpd calls a handler."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def handle_DATA(self, _server, _session, envelope):
        await asyncio.get_running_loop().run_in_executor(None, self._write, envelope.content)
        return "250 stored"

    def _write(self, content: bytes) -> None:
        with (self._directory / str(uuid4())).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


async def main(port: int, directory: Path) -> None:
    store = Store(directory)
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(store, hostname="bench.test", data_size_limit=100_000_000), "127.0.0.1", port
    )
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
