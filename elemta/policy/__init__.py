"""The plugin contract: everything that a policy plugin needs, and what the daemon runs policies with.

The names that are exported here are the contract. It is versioned by :data:`CONTRACT_VERSION`, semantically:
what works with 1.x works with every later 1.y.
"""

from elemta.address import Address
from elemta.config import REQUIRED, NoOptions, setting
from elemta.deferred_value import MaybeDeferred, Steps, detached, run
from elemta.dns import NULL_MX, MailExchanger
from elemta.domains import Domains
from elemta.envelope import Client, Envelope, MailParameters, Notify, Recipient
from elemta.errors import NoSuchDomain, ResolverTrouble
from elemta.limits import Charge, LimitRefusal, Receipt
from elemta.message.headers import Headers
from elemta.outcome import Outcome, Status
from elemta.policy.asking import ChainDecision
from elemta.policy.chain import PolicyChain
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.discovery import PluginInfo, available_plugins, load_chain
from elemta.policy.interfaces import (
    FactAnswer,
    FailureKind,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IDeliveryObserver,
    IDeliveryPolicy,
    IHeloPolicy,
    ILimitPolicy,
    ILoginObserver,
    ILoginPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    LoginOutcome,
    PolicyAnswer,
)
from elemta.policy.limit_replies import limit_verdict
from elemta.policy.relay_permission import RELAY_DENIED, RelayPermission
from elemta.policy.runner import ChainSettings, LoadedPolicy
from elemta.policy.services import Counter, Histogram, Limits, PluginMetrics, Resolver, Services
from elemta.policy.session import PolicySession
from elemta.policy.verdicts import (
    CONTINUE,
    Accept,
    Continue,
    Defer,
    Disconnect,
    Hold,
    Quarantine,
    Reject,
    RouteTo,
    Verdict,
    reply_of,
)
from elemta.policy.views import Message, Notes, Session, Transaction
from elemta.smtp.session_info import TLSInfo
from elemta.stage import Stage

# Names of version 1 of the contract.
Decision = ChainDecision

CONTRACT_VERSION = "1.3"
"""The version of the plugin contract, MAJOR.MINOR."""

# The names of version 1 for what the daemon runs policies with.
ChainTerms = ChainSettings
Conversation = PolicySession

__all__ = [
    "CONTINUE",
    "CONTRACT_VERSION",
    "NULL_MX",
    "RELAY_DENIED",
    "REQUIRED",
    "Accept",
    "Address",
    "ChainDecision",
    "ChainSettings",
    "ChainTerms",
    "Charge",
    "Client",
    "Continue",
    "Conversation",
    "Counter",
    "Decision",
    "Defer",
    "DeliveryHooks",
    "Disconnect",
    "Domains",
    "Envelope",
    "FactAnswer",
    "FailureKind",
    "Headers",
    "Histogram",
    "Hold",
    "IAuthPolicy",
    "IConnectPolicy",
    "IDataPolicy",
    "IDeliveryObserver",
    "IDeliveryPolicy",
    "IHeloPolicy",
    "ILimitPolicy",
    "ILoginObserver",
    "ILoginPolicy",
    "IMailPolicy",
    "IMessagePolicy",
    "IOutcomeObserver",
    "IPolicyPlugin",
    "IRcptPolicy",
    "LimitRefusal",
    "Limits",
    "LoadedPolicy",
    "LoginOutcome",
    "MailExchanger",
    "MailParameters",
    "MaybeDeferred",
    "Message",
    "NoOptions",
    "NoSuchDomain",
    "Notes",
    "Notify",
    "Outcome",
    "PluginInfo",
    "PluginMetrics",
    "PolicyAnswer",
    "PolicyChain",
    "PolicySession",
    "Quarantine",
    "Receipt",
    "Recipient",
    "Reject",
    "RelayPermission",
    "Resolver",
    "ResolverTrouble",
    "RouteTo",
    "Services",
    "Session",
    "Stage",
    "Status",
    "Steps",
    "TLSInfo",
    "Transaction",
    "Verdict",
    "available_plugins",
    "detached",
    "limit_verdict",
    "load_chain",
    "reply_of",
    "run",
    "setting",
]
