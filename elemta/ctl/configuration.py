"""``config``: whether the configuration is good, and what is in effect."""

from __future__ import annotations

from elemta.auth.authenticator import load_checkers
from elemta.auth.senders import SenderAddresses
from elemta.config import Config, dump
from elemta.ctl.context import CommandContext
from elemta.ctl.daemon import waits_for_restart
from elemta.ctl.exit_codes import EX_CONFIG, CommandFailed
from elemta.domains import Domains
from elemta.errors import ConfigError, Fault
from elemta.policy.discovery import load_chain
from elemta.policy.service_doubles import make_services
from elemta.runtime import ProcessRuntime


def check(invocation: CommandContext) -> int:
    """``config check``: every fault, in the file itself and in what it names. Needs no daemon."""
    try:
        config = invocation.config()
    except CommandFailed as failed:
        error = failed.__cause__
        if not isinstance(error, ConfigError) or error.rest is None:
            raise
        _, more = _of_parts(error.rest, invocation.runtime)
        faults = error.with_more(more).faults
        raise CommandFailed(EX_CONFIG, "the configuration can't be used", faults=faults) from error
    cautions, faults = _of_parts(config, invocation.runtime)
    if faults:
        raise CommandFailed(EX_CONFIG, "the configuration can't be used", faults=faults)
    notes = [*config.without_effect(), *config.cautions(), *cautions]
    return invocation.give_answer(
        {"ok": True, "config": config.source, "notes": [str(note) for note in notes]},
        *(f"note: {note}" for note in notes),
        f"{config.source}: the configuration is good",
    )


def _of_parts(config: Config, runtime: ProcessRuntime) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The cautions and the faults of what the configuration names."""
    expiry, of_certificates = _of_certificates(config, runtime)
    of_aliases, of_domains = _of_domains(config)
    faults = (
        *of_domains,
        *_of_chain(config),
        *_of_checkers(config, runtime),
        *_of_senders(config),
        *of_certificates,
        *_of_routes(config),
    )
    return (*of_aliases, *expiry), faults


def show(invocation: CommandContext) -> int:
    """``config dump``: the effective configuration of the file and the environment, or that of the daemon."""
    if invocation.args.running:
        answer = invocation.client().get("config")
        text = str(answer["toml"])
        for key in answer["needs_restart"]:
            invocation.note(waits_for_restart(key))
    else:
        text = dump(invocation.config())
    return invocation.give_answer({"toml": text}, *text.splitlines())


def _of_domains(config: Config) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The cautions and the faults of the files of recipients and aliases."""
    try:
        return Domains.from_config(config.domains).cautions(config), ()
    except ConfigError as error:
        return (), error.faults


def _of_senders(config: Config) -> tuple[Fault, ...]:
    try:
        SenderAddresses.from_config(config.submission, Domains(frozenset()))
    except ConfigError as error:
        return error.faults
    return ()


def _of_certificates(config: Config, runtime: ProcessRuntime) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The cautions and the faults of the files of certificates."""
    from elemta.certificates import (  # noqa: PLC0415 - no other command needs OpenSSL
        certificate_cautions,
        read_certificates,
    )

    try:
        certificates = read_certificates(config.tls, config.certificates)
    except ConfigError as error:
        return (), error.faults
    return tuple(certificate_cautions(certificates, runtime.wall())), ()


def _of_routes(config: Config) -> tuple[Fault, ...]:
    """The faults of files of credentials and authorities."""
    from elemta.delivery.routes import routes_from_config  # noqa: PLC0415 - needs OpenSSL

    try:
        routes_from_config(config, Domains(frozenset()))
    except ConfigError as error:
        return error.faults
    return ()


def _of_checkers(config: Config, runtime: ProcessRuntime) -> tuple[Fault, ...]:
    try:
        load_checkers(config.auth.checkers, runtime, config.source)
    except ConfigError as error:
        return error.faults
    return ()


def _of_chain(config: Config) -> tuple[Fault, ...]:
    """The faults of the chain, whose policies are built without a daemon, and never asked."""
    try:
        load_chain(config, make_services(local=config.domains.local, hostname=config.server.hostname))
    except ConfigError as error:
        return error.faults
    return ()
