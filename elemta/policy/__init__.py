"""The plugin contract: everything that a policy plugin needs, and what the daemon runs policies with.

The names that are exported here are the contract. It is versioned by :data:`CONTRACT_VERSION`, semantically:
what works with 1.x works with every later 1.y.
"""

from elemta.address import Address
from elemta.config import REQUIRED, NoOptions, setting
from elemta.envelope import Envelope, MailParameters, Notify, Recipient
from elemta.message.headers import Headers
from elemta.outcome import Outcome
from elemta.policy.chain import ChainTerms, Conversation, Decision, LoadedPolicy, PolicyChain
from elemta.policy.discovery import PluginInfo, available_plugins, load_chain
from elemta.policy.interfaces import (
    FactAnswer,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IDeliveryObserver,
    IDeliveryPolicy,
    IHeloPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    PolicyAnswer,
)
from elemta.policy.observer import FailureKind, PolicyObserver, SilentPolicyObserver
from elemta.policy.services import Counter, Histogram, Limits, PluginMetrics, Services
from elemta.policy.verdicts import (
    CONTINUE,
    Accept,
    Continue,
    Defer,
    Disconnect,
    Quarantine,
    Reject,
    Verdict,
    reply_of,
)
from elemta.policy.views import Message, Notes, Session, Transaction
from elemta.smtp.events import Stage
from elemta.smtp.facts import TLSInfo

CONTRACT_VERSION = "1.0"
"""The version of the plugin contract, MAJOR.MINOR."""

__all__ = [
    "CONTINUE",
    "CONTRACT_VERSION",
    "REQUIRED",
    "Accept",
    "Address",
    "ChainTerms",
    "Continue",
    "Conversation",
    "Counter",
    "Decision",
    "Defer",
    "Disconnect",
    "Envelope",
    "FactAnswer",
    "FailureKind",
    "Headers",
    "Histogram",
    "IAuthPolicy",
    "IConnectPolicy",
    "IDataPolicy",
    "IDeliveryObserver",
    "IDeliveryPolicy",
    "IHeloPolicy",
    "IMailPolicy",
    "IMessagePolicy",
    "IOutcomeObserver",
    "IPolicyPlugin",
    "IRcptPolicy",
    "Limits",
    "LoadedPolicy",
    "MailParameters",
    "Message",
    "NoOptions",
    "Notes",
    "Notify",
    "Outcome",
    "PluginInfo",
    "PluginMetrics",
    "PolicyAnswer",
    "PolicyChain",
    "PolicyObserver",
    "Quarantine",
    "Recipient",
    "Reject",
    "Services",
    "Session",
    "SilentPolicyObserver",
    "Stage",
    "TLSInfo",
    "Transaction",
    "Verdict",
    "available_plugins",
    "load_chain",
    "reply_of",
    "setting",
]
