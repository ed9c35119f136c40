"""Posts each delivery that failed for good to a server of yours."""

import json
from dataclasses import dataclass

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    REQUIRED,
    BackendError,
    Envelope,
    IDeliveryObserver,
    IPolicyPlugin,
    Outcome,
    Recipient,
    Services,
    setting,
)


@dataclass(frozen=True)
class ReportFailuresOptions:
    """The keys of [policy.report-failures]."""

    url: str = setting(REQUIRED, "Where the reports go.")


@implementer(IDeliveryObserver)
class ReportFailures:
    """The policy: it hears of each attempt and of each end, and nothing waits for it."""

    def __init__(self, options: ReportFailuresOptions, services: Services) -> None:
        self._url = options.url
        self._http = services.http
        self._log = services.log
        self._attempts = services.metrics.counter("attempts_total", "Attempts.", ("status",))

    def attempted(self, outcome: Outcome) -> None:
        self._attempts.labels(outcome.status.value).inc()

    async def ended(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> None:
        if outcome.reason not in ("failed", "expired"):
            return
        report = {"queue_id": envelope.queue_id, "to": str(recipient), "why": outcome.text}
        try:
            await self._http.request("POST", self._url, body=json.dumps(report).encode())
        except BackendError as error:
            self._log.warn("a report was not taken", queue_id=envelope.queue_id, reason=str(error))


@implementer(IPlugin, IPolicyPlugin)
class ReportFailuresPlugin:
    """Reports deliveries that failed."""

    name = "report-failures"
    contract = "2"
    options = ReportFailuresOptions

    def build(self, options: ReportFailuresOptions, services: Services) -> ReportFailures:
        return ReportFailures(options, services)
