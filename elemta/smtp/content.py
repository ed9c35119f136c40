"""One message on its way in, and the chunks it may come in."""

from __future__ import annotations

from dataclasses import dataclass

from elemta.smtp import replies
from elemta.smtp.events import Refuse
from elemta.smtp.framing import ChunkDecoder, ContentError, DataDecoder
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import TransactionInfo
from elemta.smtp.settings import SessionSettings

_REFUSALS = {
    ContentError.BARE_NEWLINE: replies.BARE_NEWLINE_IN_MESSAGE,
    ContentError.NUL: replies.NUL_IN_MESSAGE,
}


class IncomingContent:
    """The content of one message: counts it and remembers why it must be refused, if it must.

    A message with a flaw is read to its true end, so that none of it is taken for commands, and
    refused then; nothing of it is handed on any more once the flaw is known.
    """

    _decoder: DataDecoder | ChunkDecoder

    def __init__(self, transaction: TransactionInfo, settings: SessionSettings) -> None:
        self._transaction = transaction
        self._limit = settings.max_message_size
        self._most = settings.max_message_size + settings.oversize_slack
        self.refusal: Reply | None = None
        transaction.size = 0

    @property
    def far_too_large(self) -> bool:
        """The message is so far beyond the limit that its end is not waited for."""
        return self._transaction.size > self._most

    @property
    def was_normalized(self) -> bool:
        """Whether a bare CR or LF became CRLF."""
        check = self._decoder.check
        return check.normalize and check.bare_newlines

    def _admit(self, content: bytes, flaw: ContentError | None) -> bytes:
        """``content`` is counted; returned is what of it may go on."""
        self._transaction.size += len(content)
        if self.refusal is None:
            if flaw is not None:
                self.refusal = _REFUSALS[flaw]
            elif self._transaction.size > self._limit:
                # RFC 1870 §6.3
                self.refusal = replies.MESSAGE_TOO_BIG
        return b"" if self.refusal else content


class DataContent(IncomingContent):
    """What comes behind 354."""

    _decoder: DataDecoder

    def __init__(self, transaction: TransactionInfo, settings: SessionSettings, *, normalize: bool) -> None:
        super().__init__(transaction, settings)
        self._decoder = DataDecoder(normalize=normalize)

    @property
    def end_is_unknown(self) -> bool:
        """What some readers take for the end was met, so what follows may be content or commands."""
        return self._decoder.lone_dot

    def feed(self, block: bytes) -> tuple[bytes, int | None]:
        """The octets that may go on, and how many of ``block`` were used when the message ended in it."""
        content, used = self._decoder.feed(block)
        return self._admit(content, self._decoder.check.flaw), used


class ChunkedContent(IncomingContent):
    """What comes in the chunks of BDAT."""

    _decoder: ChunkDecoder

    def __init__(self, transaction: TransactionInfo, settings: SessionSettings, *, normalize: bool) -> None:
        super().__init__(transaction, settings)
        self._decoder = ChunkDecoder(normalize=normalize)
        self._small_chunks_left = settings.max_small_chunks

    def feed(self, block: bytes) -> bytes:
        return self._admit(self._decoder.feed(block), self._decoder.check.flaw)

    def finish(self) -> bytes:
        return self._admit(self._decoder.finish(), self._decoder.check.flaw)

    def allows(self, chunk: Chunk) -> bool:
        """Whether the client may send one more chunk of this size: small ones are counted."""
        if not chunk.last and chunk.size < 1024:
            self._small_chunks_left -= 1
        return self._small_chunks_left >= 0


@dataclass(slots=True)
class Chunk:
    """One BDAT command: its size in octets; ``left`` of them are still to come (RFC 3030 §2).

    ``refusal`` is set when the octets are only read to be thrown away: why, to be said behind them.
    """

    size: int
    last: bool
    left: int = 0
    refusal: Reply | Refuse | None = None

    def __post_init__(self) -> None:
        self.left = self.size
