"""Marks mail from outside in its subject."""

from dataclasses import dataclass

from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    CONTINUE,
    IMessagePolicy,
    IPolicyPlugin,
    Message,
    Services,
    Session,
    Transaction,
    Verdict,
    setting,
)


@dataclass(frozen=True)
class TagSubjectOptions:
    """The keys of [policy.tag-subject]."""

    tag: str = setting("[external]", "What stands before the subject.")


@implementer(IMessagePolicy)
class TagSubject:
    """The policy: what it changes is written once, when the message is stored."""

    def __init__(self, options: TagSubjectOptions, services: Services) -> None:
        self._tag = options.tag

    def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict:
        # A client may have set it to look like mail of ours.
        message.remove_header("X-Internal")
        subject = message.headers.get("Subject") or ""
        if session.user is not None or subject.startswith(self._tag):
            return CONTINUE
        if not message.replace_header("Subject", f"{self._tag} {subject}"):
            message.add_header("Subject", self._tag)
        return CONTINUE


@implementer(IPlugin, IPolicyPlugin)
class TagSubjectPlugin:
    """Marks mail from outside in its subject."""

    name = "tag-subject"
    contract = "2"
    options = TagSubjectOptions

    def build(self, options: TagSubjectOptions, services: Services) -> TagSubject:
        return TagSubject(options, services)
