"""The modules that a daemon needs in the mode that its configuration puts it in."""

from __future__ import annotations

from importlib import import_module

from elemta.daemon.components import SharedResources

# Each is imported by the function that needs it, too: a daemon without mail, or without a console, does
# without their memory.
_FOR_MAIL = ("delivery_factory", "explainer", "smtp_listeners")
_FOR_CONSOLE = ("console",)


def import_modules(shared: SharedResources, *, console: bool) -> None:
    """Import them at once: before the process forks, and before its objects are kept from the collector.

    ``console`` says that this process has one. Where something else is asked for later, as by an operator, it
    is imported then.
    """
    for_mail = _FOR_MAIL if shared.mail is not None else ()
    for name in (*for_mail, *(_FOR_CONSOLE if console else ())):
        import_module(f"elemta.daemon.{name}")
