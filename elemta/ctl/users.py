"""``user``: the users that may log in. Works on the users file itself, with or without a daemon."""

from __future__ import annotations

import getpass
import os

from elemta.auth.names import UnusableName, canonical_name
from elemta.auth.users_editor import (
    DuplicateUser,
    NoSuchUser,
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

_USERS = (Column("USER", flexible=True), Column("SCHEME"))


def add(invocation: CommandContext) -> int:
    args = invocation.args
    path = _file(invocation)
    try:
        canonical_name(args.name)
        name = add_user(
            path,
            args.name,
            _password(invocation),
            randomness=invocation.runtime.randomness,
            replace=args.replace,
        )
    except ValueError as error:
        raise CommandFailed(EX_USAGE, str(error)) from error
    except DuplicateUser as error:
        raise CommandFailed(EX_FAILED, str(error), "--replace sets a new password") from error
    except (UsersFileError, OSError) as error:
        raise _file_trouble(path, error) from error
    return _done(invocation, name, path, "added")


def delete(invocation: CommandContext) -> int:
    path = _file(invocation)
    try:
        name = delete_user(path, invocation.args.name)
    except UnusableName as error:
        raise CommandFailed(EX_USAGE, str(error)) from error
    except NoSuchUser as error:
        raise CommandFailed(EX_FAILED, str(error)) from error
    except (UsersFileError, OSError) as error:
        raise _file_trouble(path, error) from error
    return _done(invocation, name, path, "deleted")


def show_list(invocation: CommandContext) -> int:
    path = _file(invocation)
    try:
        users = list_users(path)
    except (UsersFileError, OSError) as error:
        raise _file_trouble(path, error, writing=False) from error
    names = sorted(users)
    if invocation.json:
        invocation.give(
            {"file": path, "users": [{"name": name, "scheme": users[name].scheme} for name in names]}
        )
    elif names:
        invocation.give_table(_USERS, [(name, users[name].scheme) for name in names])
    else:
        invocation.say("no user")
    return EX_OK


def _done(invocation: CommandContext, name: str, path: str, done: str) -> int:
    if invocation.json:
        invocation.give({"name": name, "file": path, "done": done})
    else:
        invocation.say(f"{name} {done} in {path}")
    return EX_OK


def _file(invocation: CommandContext) -> str:
    if invocation.args.file:
        return str(invocation.args.file)
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
