"""``user`` and ``token``: the users that may log in, and the users and tokens of the console.

They work on the files themselves, with or without a daemon.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

from elemta.auth.accounts import Account, add_account, add_token, delete_account, read_accounts
from elemta.auth.names import canonical_name
from elemta.auth.roles import AccessRole
from elemta.auth.users_editor import (
    DuplicateUser,
    add_user,
    delete_user,
    list_users,
    usable_password,
)
from elemta.ctl.context import CommandContext
from elemta.ctl.exit_codes import EX_CONFIG, EX_FAILED, EX_NOPERM, EX_OK, EX_USAGE, CommandFailed
from elemta.ctl.text import Column
from elemta.errors import UsersFileError

CHECKER = "elemta-users:"
MAX_STDIN = 64 * 1024

_USERS = (Column("USER"), Column("SCHEME"))
_ACCOUNTS = (Column("USER"), Column("ROLE"), Column("SCHEME"))
_TOKENS = (Column("TOKEN"), Column("ROLE"))


def add(invocation: CommandContext) -> int:
    args = invocation.args
    path = _file(invocation)
    randomness = invocation.runtime.randomness
    if bool(args.role) != args.console:
        raise CommandFailed(EX_USAGE, "--console needs --role, and --role needs --console")
    with _editing(path, "--replace sets a new password"):
        canonical_name(args.name)
        password = _password(invocation)
        if args.console:
            role = AccessRole(args.role)
            name = add_account(path, args.name, role, password, randomness=randomness, replace=args.replace)
        else:
            name = add_user(path, args.name, password, randomness=randomness, replace=args.replace)
    return _done(invocation, name, path, "added")


def delete(invocation: CommandContext) -> int:
    path = _file(invocation)
    with _editing(path):
        if invocation.args.console:
            name = delete_account(path, invocation.args.name, token=False)
        else:
            name = delete_user(path, invocation.args.name)
    return _done(invocation, name, path, "deleted")


def show_list(invocation: CommandContext) -> int:
    path = _file(invocation)
    if invocation.args.console:
        return _show_accounts(invocation, path)
    try:
        users = list_users(path)
    except (UsersFileError, OSError) as error:
        raise _file_trouble(path, error, writing=False) from error
    names = sorted(users)
    listed = [{"name": name, "scheme": users[name].scheme} for name in names]
    rows = [(name, users[name].scheme) for name in names]
    return invocation.give_listing({"file": path, "users": listed}, _USERS, rows, "no user")


def _show_accounts(invocation: CommandContext, path: str) -> int:
    users = [each for each in _accounts(path) if not each.digest]
    listed = [{"name": each.name, "role": each.role.value, "scheme": each.scheme} for each in users]
    rows = [(each.name, each.role.value, each.scheme) for each in users]
    return invocation.give_listing({"file": path, "users": listed}, _ACCOUNTS, rows, "no user")


def add_console_token(invocation: CommandContext) -> int:
    """``token add``: the only time that the token is shown."""
    args, path = invocation.args, _console_file(invocation)
    role = AccessRole(args.role)
    with _editing(path, "token delete removes it"):
        text = add_token(path, args.name, role, randomness=invocation.runtime.randomness)
    if invocation.json:
        invocation.give({"name": args.name, "role": role.value, "file": path, "token": text})
    else:
        invocation.say(text)
        invocation.note(f"keep it: it is not shown again; {path} has only its digest")
    return EX_OK


def delete_console_token(invocation: CommandContext) -> int:
    path = _console_file(invocation)
    with _editing(path):
        name = delete_account(path, invocation.args.name, token=True)
    return _done(invocation, name, path, "deleted")


def show_console_tokens(invocation: CommandContext) -> int:
    path = _console_file(invocation)
    tokens = [each for each in _accounts(path) if each.digest]
    listed = [{"name": each.name, "role": each.role.value} for each in tokens]
    rows = [(each.name, each.role.value) for each in tokens]
    return invocation.give_listing({"file": path, "tokens": listed}, _TOKENS, rows, "no token")


@contextmanager
def _editing(path: str, hint: str = "") -> Iterator[None]:
    """What fails in it is said as ``CommandFailed``; ``hint`` is for a name that is there already."""
    try:
        yield
    except ValueError as error:
        raise CommandFailed(EX_USAGE, str(error)) from error
    except DuplicateUser as error:
        raise CommandFailed(EX_FAILED, str(error), hint) from error
    except (UsersFileError, OSError) as error:
        raise _file_trouble(path, error) from error


def _accounts(path: str) -> list[Account]:
    if not os.path.lexists(path):
        return []
    try:
        return sorted(read_accounts(path), key=lambda each: each.name)
    except (UsersFileError, OSError) as error:
        raise _file_trouble(path, error, writing=False) from error


def _console_file(invocation: CommandContext) -> str:
    return str(invocation.args.file or invocation.config().console.users)


def _done(invocation: CommandContext, name: str, path: str, done: str) -> int:
    document = {"name": name, "file": path, "done": done}
    return invocation.give_answer(document, f"{name} {done} in {path}")


def _file(invocation: CommandContext) -> str:
    if invocation.args.file:
        return str(invocation.args.file)
    if invocation.args.console:
        return _console_file(invocation)
    config = invocation.config()
    for checker in config.auth.checkers:
        if checker.startswith(CHECKER):
            return checker[len(CHECKER) :]
    raise CommandFailed(
        EX_CONFIG,
        f"{config.source}: [auth] checkers names no users file",
        'set checkers = ["elemta-users:/etc/elemta/users"], or give --file PATH',
    )


def _password(invocation: CommandContext) -> bytes:
    if invocation.args.password_stdin:
        text = invocation.stdin.readline(MAX_STDIN)
        return usable_password(text.rstrip("\r\n").encode("utf-8", "surrogateescape"))
    if not invocation.stdin.isatty():
        raise CommandFailed(EX_USAGE, "no terminal to ask for the password", "use --password-stdin")
    first = getpass.getpass("Password: ")
    usable_password(first.encode("utf-8", "surrogateescape"))
    if getpass.getpass("Again: ") != first:
        raise CommandFailed(EX_FAILED, "the two passwords differ; nothing was changed")
    return first.encode("utf-8", "surrogateescape")


def _file_trouble(path: str, error: Exception, *, writing: bool = True) -> CommandFailed:
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, PermissionError):
        directory = os.path.dirname(os.path.abspath(path))
        hint = f"writing needs the right to change {path} and {directory}" if writing else ""
        return CommandFailed(EX_NOPERM, f"permission denied: {path}", hint)
    if isinstance(error, OSError):
        return CommandFailed(EX_FAILED, f"{path}: {error.strerror or error}")
    return CommandFailed(EX_FAILED, str(error))
