"""The plugin contract: everything that a policy plugin needs, and what the daemon runs policies with.

The names that are exported here are the contract. It is versioned by :data:`CONTRACT_VERSION`, semantically:
what works with 2.x works with every later 2.y. A plugin for version 1 works unchanged.
"""

from elemta.address import Address
from elemta.config import REQUIRED, Mode, NoOptions, OnError, setting
from elemta.deferred_value import MaybeDeferred, Steps, detached, run, then
from elemta.dns import NULL_MX, MailExchanger
from elemta.domains import Domains
from elemta.envelope import Client, Envelope, MailParameters, Notify, Recipient
from elemta.errors import (
    AddressSyntaxError,
    BackendError,
    ConfigError,
    Fault,
    NoSuchDomain,
    RelayNotGranted,
    ResolverTrouble,
    StoreUnavailable,
)
from elemta.limits import Charge, LimitRefusal, Receipt
from elemta.message.headers import Headers
from elemta.outcome import Outcome, Status
from elemta.policy.asking import ChainDecision
from elemta.policy.auth_results import ARCResult, DKIMResult, DKIMSignature, DMARCResult, SPFResult
from elemta.policy.chain import PolicyChain
from elemta.policy.contract import CONTRACT_VERSION
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.discovery import PluginInfo, available_plugins, load_chain
from elemta.policy.http_client import HttpAnswer, HttpClient, HttpHeaders
from elemta.policy.interfaces import (
    FactAnswer,
    FailureKind,
    IAuthPolicy,
    IConnectPolicy,
    IDataPolicy,
    IDeliveryObserver,
    IDeliveryPolicy,
    IHeloPolicy,
    ILifecycle,
    ILimitPolicy,
    ILoginObserver,
    ILoginPolicy,
    IMailPolicy,
    IMessagePolicy,
    IOutcomeObserver,
    IPolicyPlugin,
    IRcptPolicy,
    ISigner,
    LoginOutcome,
    PolicyAnswer,
)
from elemta.policy.limit_replies import limit_verdict
from elemta.policy.message_view import OutgoingMessage
from elemta.policy.outbox import Outbox, QueuePage, QueueView
from elemta.policy.outbox_record import OutboxRecord, OutboxStart
from elemta.policy.policy_resolver import Resolver
from elemta.policy.policy_store import Store
from elemta.policy.policy_threads import InThreads
from elemta.policy.relay_permission import RELAY_DENIED, RelayPermission
from elemta.policy.results import Results
from elemta.policy.runner import ChainSettings, LoadedPolicy
from elemta.policy.services import Counter, Histogram, Limits, PluginMetrics, Services
from elemta.policy.session import PolicySession
from elemta.policy.streams import Connect, Stream
from elemta.policy.verdicts import (
    CONTINUE,
    Accept,
    Continue,
    Defer,
    Discard,
    Disconnect,
    Hold,
    Quarantine,
    Reject,
    RouteTo,
    Verdict,
    reply_of,
)
from elemta.policy.views import Message, Notes, Session, Transaction
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import TLSInfo
from elemta.stage import Stage

# Names of version 1 of the contract.
Decision = ChainDecision

# The names of version 1 for what the daemon runs policies with.
ChainTerms = ChainSettings
Conversation = PolicySession

__all__ = [
    "CONTINUE",
    "CONTRACT_VERSION",
    "NULL_MX",
    "RELAY_DENIED",
    "REQUIRED",
    "ARCResult",
    "Accept",
    "Address",
    "AddressSyntaxError",
    "BackendError",
    "ChainDecision",
    "ChainSettings",
    "ChainTerms",
    "Charge",
    "Client",
    "ConfigError",
    "Connect",
    "Continue",
    "Conversation",
    "Counter",
    "DKIMResult",
    "DKIMSignature",
    "DMARCResult",
    "Decision",
    "Defer",
    "DeliveryHooks",
    "Discard",
    "Disconnect",
    "Domains",
    "Envelope",
    "FactAnswer",
    "FailureKind",
    "Fault",
    "Headers",
    "Histogram",
    "Hold",
    "HttpAnswer",
    "HttpClient",
    "HttpHeaders",
    "IAuthPolicy",
    "IConnectPolicy",
    "IDataPolicy",
    "IDeliveryObserver",
    "IDeliveryPolicy",
    "IHeloPolicy",
    "ILifecycle",
    "ILimitPolicy",
    "ILoginObserver",
    "ILoginPolicy",
    "IMailPolicy",
    "IMessagePolicy",
    "IOutcomeObserver",
    "IPolicyPlugin",
    "IRcptPolicy",
    "ISigner",
    "InThreads",
    "LimitRefusal",
    "Limits",
    "LoadedPolicy",
    "LoginOutcome",
    "MailExchanger",
    "MailParameters",
    "MaybeDeferred",
    "Message",
    "Mode",
    "NoOptions",
    "NoSuchDomain",
    "Notes",
    "Notify",
    "OnError",
    "Outbox",
    "OutboxRecord",
    "OutboxStart",
    "Outcome",
    "OutgoingMessage",
    "PluginInfo",
    "PluginMetrics",
    "PolicyAnswer",
    "PolicyChain",
    "PolicySession",
    "Quarantine",
    "QueuePage",
    "QueueView",
    "Receipt",
    "Recipient",
    "Reject",
    "RelayNotGranted",
    "RelayPermission",
    "Reply",
    "Resolver",
    "ResolverTrouble",
    "Results",
    "RouteTo",
    "SPFResult",
    "Services",
    "Session",
    "Stage",
    "Status",
    "Steps",
    "Store",
    "StoreUnavailable",
    "Stream",
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
    "then",
]
