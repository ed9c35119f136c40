"""A list of texts in the spool directory, kept from one start to the next."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from elemta.errors import SpoolError
from elemta.runtime.disk import Disk

TEMPORARY = "tmp."


class RecordFile:
    """``DIRECTORY/NAME``: a JSON list of texts. Its calls block; SpoolError where the disk fails."""

    def __init__(self, directory: Path, name: str, disk: Disk | None = None) -> None:
        self._directory = directory
        self._name = name
        self._disk = disk or Disk()

    def read(self) -> tuple[str, ...]:
        """The texts that were written last; none where there is no record."""
        path = self._directory / self._name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError) as error:
            raise SpoolError(f"{path} can't be read: {error}") from error
        if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
            raise SpoolError(f"{path} is no list of texts")
        return tuple(content)

    def write(self, texts: Iterable[str]) -> None:
        """Replace the record, whole or not at all; it is durable when this returns."""
        path, unfinished = self._directory / self._name, self._directory / (TEMPORARY + self._name)
        text = json.dumps(list(texts), indent=2)
        try:
            unfinished.unlink(missing_ok=True)
            descriptor = self._disk.create(unfinished)
            try:
                self._disk.write(descriptor, [text.encode("utf-8", "surrogateescape"), b"\n"])
                self._disk.sync_file(descriptor)
            finally:
                self._disk.close(descriptor)
            self._disk.rename(unfinished, path)
            self._disk.sync_directory(self._directory)
        except OSError as error:
            raise SpoolError(f"{path} can't be written: {error}") from error
