"""The modules that a daemon needs in the mode that its configuration puts it in."""

from __future__ import annotations

from importlib import import_module

from elemta.config import Config
from elemta.daemon.components import SharedResources

_FOR_MAIL = ("delivery_factory", "explainer", "smtp_listeners")
_FOR_CONSOLE = ("console",)


def import_modules(config: Config, shared: SharedResources) -> None:
    """Import them at once: before the process forks, and before its objects are kept from the collector.

    Where something else is asked for later, as by an operator, it is imported then.
    """
    for_mail = _FOR_MAIL if shared.mail is not None else ()
    for_console = _FOR_CONSOLE if config.console.endpoint else ()
    for name in (*for_mail, *for_console):
        import_module(f"elemta.daemon.{name}")
