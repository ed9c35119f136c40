"""Final delivery: writes into the recipients' Maildirs, in threads."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from elemta.delivery.maildir import Errors, MaildirDelivery, MaildirJob, file_name, maildir_path
from elemta.delivery.maildir_threads import MaildirThreads
from elemta.delivery.routes import MaildirRoute
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.transport import MessageToDeliver, Transport, TransportKind, TransportServices
from elemta.envelope import Recipient
from elemta.errors import NoMailbox, SpoolError
from elemta.message.trace import return_path_field
from elemta.outcome import Attempt, Outcome, Status

_WRITTEN = "written to the Maildir"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class MaildirTransport(Transport):
    """Delivers to Maildirs; see :mod:`elemta.delivery.maildir`."""

    def __init__(self, services: TransportServices) -> None:
        self._hostname = services.settings.hostname
        self._threads = MaildirThreads(services.runtime.reactor, services.threads, services.settings)

    @property
    def has_stuck_thread(self) -> bool:
        return self._threads.has_stuck_thread

    def reconfigure(self, settings: DeliverySettings) -> None:
        self._hostname = settings.hostname
        self._threads.settings = settings

    async def deliver(
        self, message: MessageToDeliver[MaildirRoute], recipients: Sequence[Recipient]
    ) -> Sequence[Outcome]:
        attempt, envelope, route = message.attempt, message.envelope, message.route
        attempt.final = True
        prefix = return_path_field(envelope.sender)
        drops = [
            MaildirDelivery(
                maildir_path(route.template, route.mailbox(recipient.address)),
                file_name(envelope.queue_id, recipient.address, envelope.received_at, self._hostname),
                prefix,
                route.makes(recipient.address),
                route.root,
            )
            for recipient in recipients
        ]
        job = MaildirJob(await message.open_content(), envelope.size, drops, queue_id=envelope.queue_id)
        errors: Errors = []
        written: dict[int, Outcome] = {}
        try:
            errors = await self._threads.write(job)
        finally:
            for place in sorted(job.done):
                attempt.next_hop = drops[place].directory
                written[place] = _outcome(attempt, recipients[place], None)
                attempt.taken[recipients[place].address] = written[place]
        outcomes = []
        for place, (recipient, error) in enumerate(zip(recipients, errors, strict=True)):
            attempt.next_hop = drops[place].directory
            outcomes.append(written.get(place) or _outcome(attempt, recipient, error))
        return outcomes


def _outcome(
    attempt: Attempt, recipient: Recipient, error: OSError | SpoolError | NoMailbox | None
) -> Outcome:
    if error is None:
        return attempt.outcome(recipient.address, Status.DELIVERED, 0, "2.0.0", _WRITTEN)
    if isinstance(error, NoMailbox):
        return attempt.outcome(recipient.address, Status.FAILED, 0, "5.1.1", str(error))
    # Local trouble is never permanent: a full disk, a wrong mode, a missing mount can all be repaired.
    enhanced = "4.3.1" if isinstance(error, OSError) and error.errno in _NO_SPACE else "4.3.0"
    reason = getattr(error, "strerror", None) or str(error)
    text = f"the Maildir could not be written: {reason}"
    return attempt.outcome(recipient.address, Status.DEFERRED, 0, enhanced, text)


TRANSPORT = TransportKind(MaildirRoute, MaildirRoute.from_config, MaildirTransport)
