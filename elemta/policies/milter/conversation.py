"""One connection to a milter: sends the stages of a session, and reads what it decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from elemta.policies.milter.protocol import (
    BODY_CHUNK,
    MilterAnswer,
    MilterDecision,
    MilterError,
    MilterStage,
    Modification,
    Negotiated,
    Progress,
    Step,
    header_data,
    is_allowed,
    macros_packet,
    options_packet,
    packet,
    packet_length,
    read_answer,
    read_options,
)
from elemta.policy import BackendError, Stream

MAX_MODIFICATIONS = 2_000
MAX_PROGRESS = 10_000  # packets that say "still at work", about one question
MAX_NEW_BODY = 64 * 1024 * 1024
GO_ON = MilterDecision(MilterAnswer.CONTINUE)


@dataclass(slots=True)
class MilterConversation:
    """A connection that has been negotiated. What fails raises BackendError and ends it."""

    stream: Stream
    agreed: Negotiated
    in_message: bool = False
    settled: bool = False  # the milter wants to hear no more of this session, or of this message
    settled_for_session: bool = False
    recipients: int = field(default=0)

    async def tell(
        self, stage: MilterStage, data: bytes, macros: dict[str, str] | None = None
    ) -> MilterDecision:
        """Send a stage where the milter wants it, and wait for its answer where it gives one."""
        if not self._goes_on(stage):
            return GO_ON
        if macros:
            self.stream.write(macros_packet(stage, macros))
        self.stream.write(packet(stage.command, data))
        if not stage.is_answered(self.agreed.steps):
            return GO_ON
        decision, _ = await self._answer(may_change=False)
        return self._note(stage, decision)

    @property
    def answers_headers(self) -> bool:
        """Whether the milter answers each field, and so each is sent on its own."""
        return MilterStage.HEADER.is_answered(self.agreed.steps)

    def wants(self, stage: MilterStage) -> bool:
        """Whether the milter wants to hear of this stage of the message."""
        return not self.settled and not self.settled_for_session and stage.is_sent(self.agreed.steps)

    async def send_headers(self, fields: Iterable[tuple[bytes, bytes]]) -> MilterDecision:
        """All fields, then the end of the header."""
        for name, value in fields:
            decision = await self.tell(MilterStage.HEADER, header_data(name, value, self.agreed.steps))
            if decision.answer is MilterAnswer.SKIP:
                break
            if decision is not GO_ON and decision.answer is not MilterAnswer.CONTINUE:
                return decision
        return await self.tell(MilterStage.END_OF_HEADERS, b"")

    async def send_packets(self, packets: bytes) -> MilterDecision:
        """The fields as packets that the milter does not answer, then the end of the header."""
        self.stream.write(packets)
        await self.stream.drain()
        return await self.tell(MilterStage.END_OF_HEADERS, b"")

    async def send_body(self, block: bytes) -> MilterDecision:
        """One block of the body, in pieces that the protocol takes."""
        for at in range(0, len(block), BODY_CHUNK):
            decision = await self.tell(MilterStage.BODY, block[at : at + BODY_CHUNK])
            if decision.answer is not MilterAnswer.CONTINUE:
                return decision
            await self.stream.drain()
        return GO_ON

    async def end_message(self, macros: dict[str, str]) -> tuple[MilterDecision, list[Modification]]:
        """The end of the message: what the milter decides, and what it changes."""
        if self.settled or self.settled_for_session:
            return GO_ON, []
        self.stream.write(macros_packet(MilterStage.END_OF_MESSAGE, macros))
        self.stream.write(packet(MilterStage.END_OF_MESSAGE.command))
        decision, changes = await self._answer(may_change=True)
        self.in_message = False
        return decision, changes

    def abort(self) -> None:
        """End a message that is not sent to its end; the connection stays."""
        if self.in_message and not self.stream.closed:
            self.stream.write(packet(b"A"))
        self.in_message = self.settled = False

    async def quit(self) -> None:
        if not self.stream.closed:
            self.stream.write(packet(b"Q"))
        await self.stream.close()

    def _goes_on(self, stage: MilterStage) -> bool:
        if self.settled_for_session or self.settled or not stage.is_sent(self.agreed.steps):
            return False
        if stage is MilterStage.DATA and self.agreed.version < 4:
            return False
        if stage is MilterStage.MAIL:
            self.in_message = True
        return True

    def _note(self, stage: MilterStage, decision: MilterDecision) -> MilterDecision:
        if decision.answer is MilterAnswer.ACCEPT:
            if stage in (MilterStage.CONNECT, MilterStage.HELO):
                self.settled_for_session = True
            else:
                self.settled = True
            return GO_ON
        if decision.answer is MilterAnswer.DISCARD:
            # For the milter the message is over (smfi_mail, smfi_rcpt: SMFIS_DISCARD).
            self.settled = True
        if decision.answer is MilterAnswer.SKIP and not self.agreed.steps & Step.SKIP:
            raise BackendError("the milter skips, which it did not announce")
        return decision

    async def _answer(self, *, may_change: bool) -> tuple[MilterDecision, list[Modification]]:
        answered = False
        try:
            answer = await self._read_answer(may_change=may_change)
            answered = True
        finally:
            if not answered:
                # What came later would be taken for the answer to another question.
                await self.stream.close()
        return answer

    async def _read_answer(self, *, may_change: bool) -> tuple[MilterDecision, list[Modification]]:
        changes: list[Modification] = []
        size = progress = 0
        while True:
            command, data = await read_packet(self.stream)
            try:
                said = read_answer(command, data)
            except MilterError as error:
                raise BackendError(f"the milter sent {error}") from error
            if isinstance(said, MilterDecision):
                return said, changes
            if isinstance(said, Progress):
                progress += 1
                if progress > MAX_PROGRESS:
                    raise BackendError("the milter says too often that it is still at work")
                continue
            if not may_change:
                raise BackendError("the milter changes a message that is not there yet")
            if not is_allowed(said, self.agreed.actions):
                raise BackendError(f"the milter did not announce {type(said).__name__}")
            size += len(data)
            if len(changes) >= MAX_MODIFICATIONS or size > MAX_NEW_BODY:
                raise BackendError("the milter changes too much")
            changes.append(said)


async def read_packet(stream: Stream) -> tuple[bytes, bytes]:
    """The next packet: its command and its data."""
    try:
        length = packet_length(await stream.read_exactly(4))
    except MilterError as error:
        raise BackendError(f"the milter sent {error}") from error
    content = await stream.read_exactly(length)
    return content[:1], content[1:]


async def negotiate(stream: Stream) -> MilterConversation:
    """Agree on what is sent and changed."""
    stream.write(options_packet())
    try:
        return MilterConversation(stream, read_options(*await read_packet(stream)))
    except MilterError as error:
        raise BackendError(str(error)) from error
