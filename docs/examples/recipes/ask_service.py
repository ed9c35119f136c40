"""Asks an HTTP service about each recipient. It answers 200 for one that exists, else 404."""

from dataclasses import dataclass
from urllib.parse import quote

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    CONTINUE,
    REQUIRED,
    BackendError,
    Defer,
    IPolicyPlugin,
    IRcptPolicy,
    Recipient,
    Reject,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)


@dataclass(frozen=True)
class AskServiceOptions:
    """The keys of [policy.ask-service]."""

    url: str = setting(REQUIRED, "Where the service is; the address is added to it.")


@implementer(IRcptPolicy)
class AskService:
    """The policy: asked at each RCPT, while the other sessions go on."""

    def __init__(self, options: AskServiceOptions, services: Services) -> None:
        self._url = options.url
        self._http = services.http
        self._log = services.log

    async def rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:
        if recipient.domain != "example.com":
            return CONTINUE
        try:
            answer = await self._http.request("GET", self._url + quote(str(recipient)), timeout=2.0)
        except BackendError as error:
            self._log.warn("the service does not answer", session_id=session.id, reason=str(error))
            return Defer("please try again later", code=451, enhanced="4.3.0")
        return Reject("no such mailbox", enhanced="5.1.1") if answer.status == 404 else CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class AskServicePlugin:
    """Asks an HTTP service whether a recipient exists."""

    name = "ask-service"
    contract = "2"
    options = AskServiceOptions

    def build(self, options: AskServiceOptions, services: Services) -> AskService:
        return AskService(options, services)
