from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta import policy as p


@implementer(p.IRcptPolicy)
class First:
    def rcpt(self, session: p.Session, transaction: p.Transaction, to: p.Recipient) -> p.Verdict:
        return p.Reject("no such mailbox yet") if to.local.startswith("future-") else p.CONTINUE


@implementer(IPlugin, p.IPolicyPlugin)
class FirstPlugin:
    name, options = "first", p.NoOptions

    def build(self, options: p.NoOptions, services: p.Services) -> First:
        return First()


first = FirstPlugin()
