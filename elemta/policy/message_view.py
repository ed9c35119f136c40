"""A whole message as a policy sees it, and what policies make of it before it is stored."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import BinaryIO, cast

from elemta.message.header_edits import EditedHeader, field_octets, header_of, value_of
from elemta.message.headers import Headers, read_headers

MAX_EDITED_HEADER = 1024 * 1024
"""Octets. A longer header can't be edited, but for fields on top of it."""

MAX_EDITS = 1000
"""Fields that all policies together add to one message, and octets of them."""
MAX_EDIT_OCTETS = 256 * 1024


class MessageContent:
    """One message and its edits, which the policies share.

    ``size`` is its octets, ``head`` its beginning (at least its first 64 KiB, or all of it), and ``opener``
    opens it. ``utf8``: it is sent with SMTPUTF8.
    """

    def __init__(self, size: int, head: bytes, opener: Callable[[], BinaryIO], *, utf8: bool = False) -> None:
        self.received_size = size
        self.head = head
        self.opener = opener
        self.utf8 = utf8
        self.header = EditedHeader(self._received_header)
        self.body: BinaryIO | None = None
        self.body_size = 0
        self.added = 0
        self.added_octets = 0
        self._header_size: int | None = None

    @property
    def is_rewritten(self) -> bool:
        """Whether what the client sent is not stored as it came."""
        return self.header.changed or bool(self.header.bottom) or self.body is not None

    def _received_header(self) -> bytes:
        header = header_of(self.head, self._read_header)
        self._header_size = len(header)
        return header

    def _read_header(self) -> bytes:
        with self.opener() as file:
            text = file.read(MAX_EDITED_HEADER + 1)
        if len(text) > MAX_EDITED_HEADER and b"\n\r\n" not in text:
            raise ValueError(f"a header of more than {MAX_EDITED_HEADER} octets can't be edited")
        return text

    @property
    def header_size(self) -> int:
        """The octets of the header as it was received."""
        if self._header_size is None:
            self._received_header()
        return cast(int, self._header_size)

    def open_body(self) -> tuple[BinaryIO, int]:
        """The body, from its empty line on, as a file at its start; and its octets."""
        if self.body is not None:
            return cast(BinaryIO, _Part(self.body, 0)), self.body_size
        file = self.opener()
        file.seek(self.header_size)
        return file, self.received_size - self.header_size

    def open(self) -> BinaryIO:
        """The message with all edits, as a binary file."""
        if not self.header.is_edited and self.body is None:
            return self.opener()
        header = self.header.whole
        body, size = self.open_body()
        return io.BufferedReader(_Joined(header, body, size))

    @property
    def size(self) -> int:
        if not self.header.is_edited and self.body is None:
            return self.received_size
        body = self.body_size if self.body is not None else self.received_size - self.header_size
        return len(self.header.whole) + body

    def close(self) -> None:
        """The message is stored, or refused."""
        body, self.body = self.body, None
        if body is not None:
            body.close()


class Message:
    """A whole message, without our Received field.

    A policy sees what the policies before it made of it. It may change it while it is asked; in observe mode
    a change is checked and then not made. What the changes come to is written once, when the message is
    stored. After the policy's answer every method raises :class:`RuntimeError`.
    """

    __slots__ = ("_content", "_headers", "_observed", "_open")

    def __init__(self, size: int, head: bytes, opener: Callable[[], BinaryIO], *, utf8: bool = False) -> None:
        self._content = MessageContent(size, head, opener, utf8=utf8)
        self._headers: Headers | None = None
        self._observed = False
        self._open = True

    @classmethod
    def of(cls, content: MessageContent, *, observed: bool) -> Message:
        """The view of one policy."""
        message = cls.__new__(cls)
        message._content = content
        message._headers = None
        message._observed = observed
        message._open = True
        return message

    @property
    def content(self) -> MessageContent:
        """What the policies share; for the daemon."""
        return self._content

    def close(self) -> None:
        """The policy has answered."""
        self._open = False

    @property
    def size(self) -> int:
        """The octets of the message."""
        return self._content.size

    @property
    def headers(self) -> Headers:
        """The header fields, read with bounds: garbage gives fewer fields, never an error.

        A message whose first line is no field has none: it begins with an empty line, and all of it is body.
        """
        if self._headers is None:
            header = self._content.header
            self._headers = read_headers(header.whole + b"\r\n" if header.is_edited else self._content.head)
        return self._headers

    def open(self) -> BinaryIO:
        """The message as a binary file to read from, lines ending in CRLF; close it after use.

        Reading a large one blocks: do it in a thread.
        """
        self._check()
        return self._content.open()

    def add_header(self, name: str, value: str, at: str = "top") -> None:
        """Add a field, its octets as they are given.

        ``at="top"``: above all that is there, our Received included; ``"bottom"``: behind the client's last
        field. It is folded only where a line would have more than 998 octets, and folds in ``value`` stay.
        Words beyond ASCII are encoded unless the message came with SMTPUTF8. Raises ValueError where it
        can't be a field, or there are too many.
        """
        self._check()
        if at not in ("top", "bottom"):
            raise ValueError(f'a field is added at "top" or "bottom", not {at!r}')
        field = self._field(name, value)
        if at == "bottom":
            # It is read now, so that a header that can't be edited is an error here.
            self._content.header.fields  # noqa: B018
        if not self._observed:
            header = self._content.header
            self._count(field)
            if at == "top":
                header.top.insert(0, field)
            else:
                header.bottom.append(field)

    def remove_header(
        self, name: str, index: int | None = None, where: Callable[[str], bool] | None = None
    ) -> int:
        """Remove fields; returns how many.

        All with this name; or the one at ``index`` from the top (0 the first, -1 the last); or those whose
        value, unfolded, ``where`` accepts.
        """
        self._check()
        places = self._content.header.places(name)
        if index is not None:
            places = [places[index]] if -len(places) <= index < len(places) else []
        if where is not None:
            places = [(block, at) for block, at in places if where(value_of(block[at]))]
        if not self._observed:
            self._content.header.remove(places)
            self._headers = None
        return len(places)

    def replace_header(self, name: str, value: str, index: int = 0) -> bool:
        """Give the field at ``index`` from the top another value; returns whether there is one."""
        self._check()
        field = self._field(name, value)
        places = self._content.header.places(name)
        if not -len(places) <= index < len(places):
            return False
        if not self._observed:
            self._count(field)
            self._content.header.replace(places[index], field)
        return True

    def replace_body(self, file: BinaryIO) -> None:
        """Store the content of ``file``, from its start, in the place of what is behind the header.

        The file is read when the message is stored, and closed then or when it is refused; it must stay
        readable until that. A bare CR or LF in it becomes CRLF, and NUL goes. A file that gives text and no
        octets raises TypeError.
        """
        self._check()
        if not isinstance(file.read(0), bytes):
            raise TypeError("the body is no binary file")
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if self._observed:
            return
        self._content.header.fields  # noqa: B018 - where the header ends is read now
        self._content.close()
        self._content.body, self._content.body_size = _with_empty_line(file), size + 2

    def _field(self, name: str, value: str) -> bytes:
        field = field_octets(name, value, utf8=self._content.utf8)
        content = self._content
        if content.added >= MAX_EDITS or content.added_octets + len(field) > MAX_EDIT_OCTETS:
            raise ValueError(f"more than {MAX_EDITS} added fields, or {MAX_EDIT_OCTETS} octets of them")
        return field

    def _count(self, field: bytes) -> None:
        self._content.added += 1
        self._content.added_octets += len(field)
        self._headers = None

    def _check(self) -> None:
        if not self._open:
            raise RuntimeError("a message can only be used by a policy that is being asked about it")


class OutgoingMessage:
    """A message as it will be stored, with our fields, for a policy that signs. It may only add fields."""

    __slots__ = ("_message",)

    def __init__(self, content: MessageContent, *, observed: bool) -> None:
        self._message = Message.of(content, observed=observed)

    @property
    def size(self) -> int:
        """The octets of the message."""
        return self._message.size

    @property
    def headers(self) -> Headers:
        """The header fields, read with bounds."""
        return self._message.headers

    def open(self) -> BinaryIO:
        """The message as a binary file to read from, lines ending in CRLF; close it after use."""
        return self._message.open()

    def add_header(self, name: str, value: str) -> None:
        """Add a field above all that is there, its octets as they are given."""
        self._message.add_header(name, value)

    def close(self) -> None:
        """The policy has answered."""
        self._message.close()


class _Joined(io.RawIOBase):
    """A header and a body as one file. Seekable."""

    def __init__(self, header: bytes, body: BinaryIO, body_size: int) -> None:
        super().__init__()
        self._header = header
        self._body = body
        self._start = body.tell()
        self._size = len(header) + body_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        wanted, at = len(buffer), self._position
        if at < len(self._header):
            data = self._header[at : at + wanted]
        else:
            self._body.seek(self._start + at - len(self._header))
            data = self._body.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


class _Part(io.RawIOBase):
    """A file that others read, too: each with a position of its own. To close it leaves the file open."""

    def __init__(self, file: BinaryIO, position: int) -> None:
        super().__init__()
        self._file = file
        self._position = position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_END:
            self._position = self._file.seek(offset, os.SEEK_END)
        else:
            self._position = max(0, offset + (self._position if whence == os.SEEK_CUR else 0))
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        self._file.seek(self._position)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _with_empty_line(file: BinaryIO) -> BinaryIO:
    """The body with the empty line in front of it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return cast(BinaryIO, _Joined(b"\r\n", file, size))
