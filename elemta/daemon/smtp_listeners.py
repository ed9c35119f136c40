"""The listeners that receive mail, and the settings of their sessions."""

from __future__ import annotations

from elemta.config import BareNewline, Config, EarlyTalkers, ListenerConfig, ListenerTLS, Role
from elemta.daemon.components import Components, SharedResources
from elemta.daemon.mail_parts import MailParts, SharedMailParts
from elemta.delivery.maildir import Mailboxes
from elemta.delivery.routes import RouteTable
from elemta.net.context import ListenerContext
from elemta.net.factory import ESMTPFactory
from elemta.net.listeners import Listener
from elemta.net.registry import ConnectionRegistry
from elemta.net.tls import ServerCertificate
from elemta.smtp.session import SessionSettings
from elemta.smtp.settings import LEAST_ENVELOPE, ORDINARY_RECIPIENT
from elemta.spool import Spool


class SMTPListeners:
    """Each listener's factory, whose next session begins under the components of the moment."""

    def __init__(self, shared: SharedResources, mail: SharedMailParts, registry: ConnectionRegistry) -> None:
        self.factories: dict[str, ESMTPFactory] = {}
        self._registry = registry
        self._metrics = shared.metrics.net
        self._now = shared.runtime.wall
        self._certificate: ServerCertificate | None = None
        self._mailboxes = Mailboxes(shared.runtime)
        self._hop_memory = mail.hop_memory

    def make(self, config: Config) -> list[Listener]:
        """The listeners of a configuration; they are not bound."""
        made = []
        for listener in config.listeners:
            factory = ESMTPFactory(self._registry, listener, self._metrics)
            self.factories[listener.name] = factory
            made.append(Listener(listener.name, listener.endpoint, factory))
        return made

    def set_context(self, components: Components, mail: MailParts, spool: Spool) -> None:
        """Let every listener's next session begin under ``components``."""
        if mail.tls is not None:
            self._certificate = self._certificate or ServerCertificate(mail.tls)
            self._certificate.replace(mail.tls)
        config = components.config
        # The octets of memory that one envelope may take.
        max_envelope = max(LEAST_ENVELOPE, config.server.max_recipients * ORDINARY_RECIPIENT)
        self._registry.envelopes.admit(max_envelope)
        self._registry.overload.commit_seconds = lambda: spool.commit_seconds
        self._mailboxes.forget()
        routes = None if components.chain.delivery_hooks.asks else RouteTable(mail.routes)
        configured = {listener.name: listener for listener in config.listeners}
        for factory in self.factories.values():
            listener = configured.get(factory.listener.name, factory.listener)
            if listener.endpoint == factory.listener.endpoint:
                factory.listener = listener
            # Else it needs a restart, and stays till then what it was at this address; its clients are
            # judged by the new policies all the same.
            factory.context = ListenerContext(
                listener=factory.listener,
                server=config.server,
                session=session_settings(components, mail, factory.listener, max_envelope),
                chain=components.chain,
                limiter=components.limiter,
                authenticator=mail.authenticator,
                certificate=self._certificate,
                spool=spool,
                mailboxes=self._mailboxes,
                domains=components.domains,
                hop_memory=self._hop_memory,
                submission=mail.submission,
                routes=routes,
                metrics=self._metrics,
                now=self._now,
            )

    def stop(self) -> None:
        """End the threads."""
        self._mailboxes.stop()


def session_settings(
    components: Components, mail: MailParts, listener: ListenerConfig, max_envelope: int
) -> SessionSettings:
    """The settings of the SMTP sessions of ``listener``."""
    config, server = components.config, components.config.server
    return SessionSettings(
        hostname=server.hostname,
        max_message_size=server.max_message_size,
        max_recipients=server.max_recipients,
        normalize_newlines=server.bare_newline is BareNewline.NORMALIZE,
        implicit_tls=listener.tls is ListenerTLS.IMPLICIT,
        starttls=listener.tls is ListenerTLS.STARTTLS and mail.tls is not None,
        auth=mail.authenticator.enabled,
        auth_needs_tls=config.auth.require_tls,
        require_auth=listener.role is Role.SUBMISSION,
        postmaster_domain=config.domains.local[0],
        max_envelope=max_envelope,
        may_relay=components.domains.may_relay,
        strict=listener.strict,
        reject_early_talkers=listener.early_talkers is EarlyTalkers.REJECT,
        unasked=components.chain.unasked,
    )
