"""The record of the spools that this one's node has adopted, kept beside its own partitions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from elemta.errors import SpoolError
from elemta.spool.disk import Disk
from elemta.spool.partition import TEMPORARY

RECORD = "adopted"


class AdoptionRecord:
    """``DIR/adopted``: a JSON list of directories. Its calls block; SpoolError where the disk fails."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root = root
        self._disk = disk or Disk()

    def read(self) -> tuple[Path, ...]:
        """The directories that were written last; none where there is no record."""
        path = self._root / RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            raise SpoolError(f"{path} can't be read: {error}") from error
        if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
            raise SpoolError(f"{path} is no list of directories")
        return tuple(Path(each) for each in content)

    def write(self, directories: Iterable[Path]) -> None:
        """Replace the record, whole or not at all; it is durable when this returns."""
        path, unfinished = self._root / RECORD, self._root / (TEMPORARY + RECORD)
        text = json.dumps([str(directory) for directory in directories], indent=2)
        try:
            unfinished.unlink(missing_ok=True)
            descriptor = self._disk.create(unfinished)
            try:
                self._disk.write(descriptor, [text.encode("utf-8", "surrogateescape"), b"\n"])
                self._disk.sync_file(descriptor)
            finally:
                self._disk.close(descriptor)
            self._disk.rename(unfinished, path)
            self._disk.sync_directory(self._root)
        except OSError as error:
            raise SpoolError(f"{path} can't be written: {error}") from error
