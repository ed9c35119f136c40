"""The values of the admin API as JSON. Names and shapes here are public: scripts read them.

Times are seconds since the epoch, durations seconds, sizes octets. Addresses are as between ``<`` and
``>``, so the null reverse-path is ``""``.
"""

from __future__ import annotations

from elemta.envelope import Client, Notify, Recipient
from elemta.errors import Fault
from elemta.ops.admin_operations import DaemonStatus, ListenerStatus, NodeStatus, ReloadResult, ValkeyStatus
from elemta.policy.discovery import PluginInfo
from elemta.spool.records import (
    AttemptRecord,
    MessageRecord,
    MessageState,
    MessageSummary,
    RecipientRecord,
    SpoolStats,
)

Json = dict[str, "str | int | float | bool | Json | list[Json] | list[str] | None"]


def status_json(status: DaemonStatus, spool: Json, now: float) -> Json:
    """``GET /v1/status``; ``spool`` is what :func:`stats_json` gives, or what is known instead."""
    return {
        "version": status.version,
        "node_id": status.node_id,
        "hostname": status.hostname,
        "pid": status.pid,
        "state": status.state,
        "ready": not status.not_ready,
        "not_ready": list(status.not_ready),
        "started_at": status.started_at,
        "uptime": max(0.0, now - status.started_at),
        "config": status.config_source,
        "listeners": [_listener(listener) for listener in status.listeners],
        "sessions": status.sessions,
        "policies": list(status.policies),
        "limiter": status.limiter.mode,
        "live_nodes": status.limiter.live_nodes,
        "valkey": _valkey(status.limiter.valkey),
        "spool": {"directory": status.spool_directory, **spool},
        "needs_restart": list(status.needs_restart),
        "notes": [fault_json(note) for note in status.notes],
    }


def _listener(listener: ListenerStatus) -> Json:
    return {
        "name": listener.name,
        "role": listener.role,
        "tls": listener.tls,
        "address": listener.address,
        "connections": listener.connections,
    }


def _valkey(valkey: ValkeyStatus | None) -> Json | None:
    if valkey is None:
        return None
    return {"url": valkey.url, "up": valkey.up, "breaker": valkey.breaker, "trouble": valkey.trouble}


def node_json(node: NodeStatus, now: float) -> Json:
    """One of ``GET /v1/nodes``."""
    return {
        "node_id": node.node_id,
        "this": node.this,
        "hostname": node.hostname,
        "version": node.version,
        "address": node.address,
        "started_at": node.started_at,
        "uptime": max(0.0, now - node.started_at),
        "seen_ago": max(0.0, now - node.seen_at),
        "sessions": node.sessions,
        "queue": node.queue,
        "mode": node.mode,
    }


def fault_json(fault: Fault) -> Json:
    return {"place": fault.place, "key": fault.key, "problem": fault.problem, "hint": fault.hint}


def plugin_json(plugin: PluginInfo) -> Json:
    """One of ``GET /v1/plugins``."""
    return {
        "name": plugin.name,
        "origin": plugin.origin,
        "words": plugin.words,
        "error": plugin.error,
        "in_chain": plugin.in_chain,
        "interfaces": list(plugin.interfaces),
    }


def reload_json(result: ReloadResult) -> Json:
    """``POST /v1/reload``."""
    return {
        "faults": [fault_json(fault) for fault in result.faults],
        "needs_restart": list(result.needs_restart),
    }


def stats_json(stats: SpoolStats) -> Json:
    """``GET /v1/queue/stats``, and the spool in the status."""
    return {
        "healthy": stats.healthy,
        "free": stats.free,
        "oldest_age": stats.oldest_age,
        "total": {"messages": stats.total, "octets": stats.total_octets},
        "states": {
            state.value: {"messages": count, "octets": stats.octets.get(state, 0)}
            for state, count in stats.messages.items()
        },
    }


def summary_json(summary: MessageSummary) -> Json:
    """One of ``GET /v1/queue``."""
    return {
        "queue_id": summary.queue_id,
        "state": summary.state.value,
        "sender": str(summary.sender),
        "recipients": summary.recipients,
        "pending": summary.pending,
        "size": summary.size,
        "received_at": summary.received_at,
        "next_attempt_at": _next_attempt(summary.state, summary.next_attempt_at),
        "attempts": summary.attempts,
        "hold_reason": summary.hold_reason,
    }


def record_json(record: MessageRecord) -> Json:
    """``GET /v1/queue/ID``."""
    message, envelope = record.message, record.envelope
    parameters = envelope.parameters
    return {
        "queue_id": record.queue_id,
        "state": message.state.value,
        "hold_reason": message.hold_reason,
        "sender": str(envelope.sender),
        "size": envelope.size,
        "received_at": envelope.received_at,
        "next_attempt_at": _next_attempt(message.state, message.next_attempt_at),
        "attempts": message.attempts,
        "client": _client(envelope.client),
        "parameters": {
            "size": parameters.size,
            "body": parameters.body.value if parameters.body else None,
            "smtputf8": parameters.smtputf8,
            "ret": parameters.ret.value if parameters.ret else None,
            "envid": parameters.envid,
            "auth": parameters.auth,
        },
        "recipients": [_recipient(recipient) for recipient in record.recipients],
        "history": [_attempt(attempt) for attempt in record.history],
    }


def _next_attempt(state: MessageState, at: float) -> float | None:
    return None if state is MessageState.HOLD else at


def _client(client: Client) -> Json:
    return {
        "ip": client.ip,
        "helo": client.helo,
        "listener": client.listener,
        "session_id": client.session_id,
        "user": client.user,
        "tls": client.tls,
    }


def _recipient(record: RecipientRecord) -> Json:
    return {
        "address": str(record.recipient.address),
        "pending": record.pending,
        "status": record.status.value if record.status else None,
        "code": record.code,
        "enhanced": record.enhanced,
        "text": record.text,
        "route": record.route,
        "next_hop": record.next_hop,
        "at": record.at,
        "notify": _notify(record.recipient),
        "orcpt": record.recipient.orcpt,
    }


def _notify(recipient: Recipient) -> list[str] | None:
    if recipient.notify is None:
        return None
    # RFC 3461 §4.1: NEVER stands alone
    return [flag.name for flag in Notify if flag in recipient.notify and flag.name] or ["NEVER"]


def _attempt(attempt: AttemptRecord) -> Json:
    return {
        "number": attempt.number,
        "recipient": str(attempt.recipient),
        "status": attempt.status.value,
        "code": attempt.code,
        "enhanced": attempt.enhanced,
        "text": attempt.text,
        "route": attempt.route,
        "next_hop": attempt.next_hop,
        "at": attempt.at,
        "seconds": attempt.seconds,
    }
