"""The command line of ``elemtactl``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any, NoReturn, TextIO, cast

from elemta import __version__
from elemta.ctl import (
    completion,
    configuration,
    daemon,
    destinations,
    dkim,
    explain,
    find,
    limits,
    overrides,
    pushed_limits,
    queue,
    spool,
    trace,
    users,
)
from elemta.ctl.client import AdminClient
from elemta.ctl.context import CONFIG_VARIABLE, DEFAULT_CONFIG, CommandContext, config_path, usual_socket
from elemta.ctl.exit_codes import EX_FAILED, EX_INTERRUPTED, EX_OK, EX_USAGE, CommandFailed
from elemta.ctl.grammar import CommandGrammar
from elemta.ctl.text import safe
from elemta.runtime import ProcessRuntime

Command = Callable[[CommandContext], int]

EPILOG = """\
exit codes: 0 done, 1 failed or no, 2 wrong use, 69 the daemon is not running,
77 permission denied, 78 the configuration can't be used
"""


def main(
    argv: Sequence[str],
    stdout: TextIO,
    stderr: TextIO,
    environ: Mapping[str, str],
    stdin: TextIO | None = None,
    *,
    runtime: ProcessRuntime | None = None,
) -> int:
    """Run one command line without the program's name; the exit code."""
    if argv and argv[0] == completion.COMMAND:
        return _complete(argv[1:], stdout, environ)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            args = parser().parse_args(list(argv))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else EX_USAGE
    with ExitStack() as closing:
        source = stdin if stdin is not None else sys.stdin
        world = runtime or ProcessRuntime.of_system()
        return _run(args.command, CommandContext(args, source, stdout, stderr, environ, closing, world))


def _complete(words: Sequence[str], stdout: TextIO, environ: Mapping[str, str]) -> int:
    def client(config: str | None, socket: str | None) -> AdminClient:
        return AdminClient(socket or usual_socket(config_path(config, environ), environ), completion.SECONDS)

    for word in completion.candidates(words, parser(), client):
        # What has to be written out can't be typed, either.
        if safe(word) == word and " " not in word:
            stdout.write(f"{word}\n")
    return EX_OK


def _run(command: Command, invocation: CommandContext) -> int:
    try:
        return command(invocation)
    except CommandFailed as failed:
        return _fail(invocation, failed)
    except KeyboardInterrupt:
        invocation.stderr.write("\n")
        return EX_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it.
        return EX_FAILED
    except OSError as error:
        # A full disk under the output, as a rule: what was written is not the whole answer.
        where = f"{error.filename}: " if error.filename else ""
        invocation.note(f"{where}{error.strerror or error}")
        return EX_FAILED


def console() -> NoReturn:
    """The entry point of the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    stdin, stdout, stderr = _open(sys.stdin, "r"), _open(sys.stdout), _open(sys.stderr)
    code = main(sys.argv[1:], stdout, stderr, os.environ, stdin)
    try:
        stdout.flush()
    except OSError as error:
        if code == EX_OK and not isinstance(error, BrokenPipeError):
            stderr.write(f"elemtactl: {error.strerror or error}\n")
        code = code or EX_FAILED
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _open(stream: TextIO | None, mode: str = "w") -> TextIO:
    """A stream of the process; an empty one where the process was started without it."""
    if stream is not None:
        return stream
    return cast("TextIO", open(os.devnull, mode, encoding="utf-8"))


def _fail(invocation: CommandContext, failed: CommandFailed) -> int:
    if invocation.json:
        invocation.give(
            {
                "error": failed.problem,
                "hint": failed.hint,
                "faults": [
                    {"place": each.place, "key": each.key, "problem": each.problem, "hint": each.hint}
                    for each in failed.faults
                ],
            }
        )
    invocation.stderr.write(f"elemtactl: {safe(failed.problem)}\n")
    for fault in failed.faults:
        invocation.stderr.write(f"  {safe(str(fault))}\n")
    if failed.hint:
        invocation.stderr.write(f"  {safe(failed.hint)}\n")
    return failed.code


def parser() -> argparse.ArgumentParser:
    """The whole grammar; the options of :func:`_shared` may stand before or behind a command."""
    top = CommandGrammar(
        prog="elemtactl",
        description="Look at a running Elemta and tell it what to do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_shared()],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"elemtactl {__version__}")
    commands = _commands(top)
    _add(commands, "status", daemon.status, "the daemon, its listeners and its queue")
    nodes = _add(commands, "nodes", daemon.nodes, "the nodes of the cluster that are alive")
    nodes.add_argument("--all", action="store_true", help="those of the last week that left or died, too")
    _add_config(_group(commands, "config", "the configuration"))
    _add_plugins(commands)
    found = _add(
        commands, "find", find.find, "what became of messages: by id, address, IP address or next hop's id"
    )
    found.add_argument(
        "text", metavar="TEXT", help="a queue id, a Message-ID, an address, a client's IP, a next hop's id"
    )
    found.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="at most N, the newest (default 20; 0: all)"
    )
    _add_queue(_group(commands, "queue", "the messages that wait"))
    _add_destinations(commands)
    _add_spool(_group(commands, "spool", "the spools that are delivered from, those of dead nodes too"))
    _add_limits(_group(commands, "limits", "the identities that are limited, by which limit, and until when"))
    _add_user(_group(commands, "user", "the users that may log in: edits the users file, needs no daemon"))
    _add_token(_group(commands, "token", "the tokens of the console's API: edits the file, needs no daemon"))
    _add_dkim(_group(commands, "dkim", "keys for the policy dkim-sign; needs no daemon"))
    _add_explain(commands)
    _add_trace(commands)
    _add(commands, "reload", daemon.reload, "read the configuration again; a bad one changes nothing")
    _add(commands, "drain", daemon.drain, "take no new session; open ones end after their message")
    _add(commands, "undrain", daemon.undrain, "end a drain: take new sessions again")
    return top


def _shared() -> argparse.ArgumentParser:
    # Without defaults, or a command's parser would overwrite what stood before the command.
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options = shared.add_argument_group("options of every command")
    options.add_argument(
        "--config",
        metavar="FILE",
        help=f"the daemon's configuration (default: ${CONFIG_VARIABLE}, then {DEFAULT_CONFIG})",
    )
    options.add_argument(
        "--socket", metavar="PATH", help="the admin socket (default: in the spool directory)"
    )
    options.add_argument("--json", action="store_true", help="print one JSON document")
    return shared


def _commands(parent: argparse.ArgumentParser) -> Any:
    return parent.add_subparsers(metavar="COMMAND", required=True, title="commands")


def _group(commands: Any, name: str, words: str) -> Any:
    return _commands(commands.add_parser(name, help=words, description=words, parents=[_shared()]))


def _add(commands: Any, name: str, command: Command, words: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=words, parents=[_shared()], allow_abbrev=False
    )
    added.set_defaults(command=command)
    return added


def _add_plugins(commands: Any) -> None:
    words = "the installed policy plugins and which are in the chain"
    plugins = _add(commands, "plugins", daemon.plugins, words)
    below = plugins.add_subparsers(metavar="COMMAND", title="commands")
    shown = _add(below, "show", daemon.plugin, "one plugin: its options, and the policies made of it")
    shown.add_argument("name", metavar="NAME")


def _add_config(commands: Any) -> None:
    _add(commands, "check", configuration.check, "name every fault of the configuration; needs no daemon")
    dump = _add(commands, "dump", configuration.show, "print the effective configuration, without secrets")
    dump.add_argument("--running", action="store_true", help="what the running daemon has in force")


def _add_queue(commands: Any) -> None:
    listing = _add(commands, "list", queue.show_list, "the messages, oldest first")
    _add_filters(listing)
    listing.add_argument(
        "--limit", type=_count, default=100, metavar="N", help="at most N (default 100; 0: all)"
    )
    shown = _add(commands, "show", queue.show, "all about a message: client, recipients, attempts")
    shown.add_argument("ids", nargs="+", metavar="ID")
    content = _add(commands, "cat", queue.cat, "a message as it is sent on")
    content.add_argument("id", metavar="ID")
    content.add_argument("--headers", action="store_true", help="the header alone")
    for action, words in (
        ("retry", "attempt deferred messages now"),
        ("hold", "keep messages from being delivered"),
        ("release", "deliver held messages now"),
        ("bounce", "return messages to their senders, as mail that could not be delivered"),
        ("delete", "remove messages for good, without a notice"),
    ):
        added = _add(commands, action, queue.change, words)
        added.set_defaults(action=action)
        added.add_argument("ids", nargs="*", metavar="ID")
        added.add_argument("--all", action="store_true", help="all messages, or all that match the filters")
        _add_filters(added)
        if action == "hold":
            about = "the reason to show (of messages that are named, --reason is this, too)"
            added.add_argument("--note", metavar="TEXT", help=about)
        added.add_argument("--yes", action="store_true", help="do not ask")
    _add(commands, "stats", queue.stats, "the queue in numbers")


def _add_filters(added: argparse.ArgumentParser) -> None:
    filters = added.add_argument_group(
        "filters",
        "TEXT is a part of what is looked for, whatever its case; in < and > it is the whole, so <> is the "
        "null sender; with * and ? in it, it is a pattern for the whole.",
    )
    filters.add_argument("--state", choices=queue.STATES)
    filters.add_argument("--from", dest="sender", metavar="TEXT", help="in the sender")
    filters.add_argument("--to", dest="recipient", metavar="TEXT", help="in a recipient")
    filters.add_argument("--destination", metavar="TEXT", help="in the name of a destination")
    filters.add_argument("--reason", dest="why", metavar="TEXT", help="in the reason for which it waits")
    filters.add_argument("--older-than", metavar="DURATION", help="received so long ago, such as 2h")


def _add_destinations(commands: Any) -> None:
    words = "the destinations that mail waits for: how many, since when, why, and the next attempt"
    listing = _add(commands, "destinations", destinations.show_list, words)
    below = listing.add_subparsers(metavar="COMMAND", title="commands")
    _add(below, "list", destinations.show_list, words)
    for action, about in (
        ("probe", "make one attempt now; the back-off of one that is down does not change"),
        ("pause", "attempt nothing there until it is resumed, also after a restart"),
        ("resume", "end a pause"),
    ):
        added = _add(below, action, destinations.change, about)
        added.set_defaults(action=action)
        added.add_argument("name", metavar="NAME", help="as in the list: a domain, or the target of a route")


def _add_spool(commands: Any) -> None:
    _add(commands, "list", spool.show_list, "this node's own spool and those that it adopted")
    for name, command, words in (
        ("adopt", spool.adopt, "deliver what a node that is gone left behind, until its spool is empty"),
        ("give-back", spool.give_back, "stop that, so that the spool's own node can have it again"),
    ):
        added = _add(commands, name, command, words)
        added.add_argument("directory", metavar="DIRECTORY", help="the spool directory of that node")


def _add_limits(commands: Any) -> None:
    _add_overrides(commands)
    _add_pushes(commands)
    _add(commands, "list", limits.show_list, "the limits in force")
    top = _add(commands, "top", limits.top, "the identities that are refused now, and those nearest to it")
    top.add_argument("limit", nargs="?", metavar="LIMIT", help="of this limit only")
    top.add_argument("--watch", action="store_true", help="again every two seconds, until interrupted")
    top.add_argument("--count", type=_count, default=20, metavar="N", help="at most N (default 20)")
    for name, command, words in (
        ("show", limits.show, "how full the limits are for an identity"),
        ("reset", limits.reset, "forget what was counted for an identity, in the whole cluster"),
    ):
        added = _add(commands, name, command, words)
        added.add_argument("of", nargs="?", metavar="NAME", help="of this limit only")
        added.add_argument(
            "id",
            metavar="ID",
            help="an IP address, a mail address, a user, a domain ...; NAME:ID is the same as NAME ID",
        )


def _add_pushes(commands: Any) -> None:
    pushed = _add(
        commands, "push", pushed_limits.push, "let the [[limit]] tables of a file hold in the fleet"
    )
    pushed.add_argument("file", metavar="FILE", help="a TOML file with [[limit]] tables; - is standard input")
    back = _add(commands, "rollback", pushed_limits.rollback, "push an earlier version again, as a new one")
    back.add_argument(
        "version", type=_count, metavar="N", help="from limits history; 0: the files' own limits"
    )
    for added in (pushed, back):
        added.add_argument(
            "--dry-run", action="store_true", help="show what would change, and change nothing"
        )
        added.add_argument("--yes", action="store_true", help="do not ask")
        added.add_argument("--note", metavar="TEXT", help="why, for other operators")
    _add(commands, "history", pushed_limits.history, "the sets of limits that were pushed, the last first")


def _add_overrides(commands: Any) -> None:
    _add(commands, "overrides", overrides.show_list, "the overrides that hold, with author, end and note")
    made = _add(commands, "override", overrides.change, "let other rates hold for an identity, for a while")
    made.add_argument("limit", metavar="NAME", help="the limit")
    made.add_argument("id", metavar="ID", help="an identity as in limits show, or a network of addresses")
    made.add_argument("--exempt", action="store_true", help="the limit does not count it at all")
    made.add_argument(
        "--rates", nargs="+", action="extend", default=[], metavar="RATE", help="such as 500/1m 5000/1h"
    )
    made.add_argument("--for", dest="duration", metavar="DURATION", help="such as 1h")
    made.add_argument("--note", metavar="TEXT", help="why, for other operators")
    made.add_argument("--remove", action="store_true", help="end it now")


def _add_explain(commands: Any) -> None:
    words = "what would happen to a client and its message; changes and counts nothing"
    added = _add(commands, "explain", explain.explain, words)
    added.add_argument("--ip", required=True, metavar="ADDRESS", help="the client's address")
    added.add_argument("--listener", metavar="NAME", help="where it connects (default: the first)")
    added.add_argument("--helo", metavar="NAME", help="the name that it says (default: its address)")
    added.add_argument("--user", metavar="NAME", help="the user that it has logged in as")
    added.add_argument("--from", dest="sender", metavar="ADDRESS", help="the sender; <> for bounces")
    added.add_argument(
        "--to",
        dest="recipients",
        nargs="+",
        action="extend",
        default=[],
        metavar="ADDRESS",
        help="the recipients",
    )
    added.add_argument("--message", metavar="FILE", help="the message with its header; - for stdin")


def _add_trace(commands: Any) -> None:
    added = _add(commands, "trace", trace.trace, "live conversations with clients and next hops")
    added.add_argument("--ip", metavar="NET", help="those of this address or network only")
    added.add_argument("--to", metavar="DOMAIN", help="those with a recipient in this domain only")
    added.add_argument("--one", action="store_true", help="end with the first conversation")


def _add_user(commands: Any) -> None:
    for name, command, words in (
        ("add", users.add, "add a user; asks for the password twice"),
        ("delete", users.delete, "remove a user"),
        ("list", users.show_list, "names and hash schemes"),
    ):
        added = _add(commands, name, command, words)
        added.add_argument(
            "--file",
            metavar="PATH",
            help="the users file (default: the first elemta-users: in [auth] checkers)",
        )
        added.add_argument(
            "--console", action="store_true", help="the users of the console, in the file of [console] users"
        )
        if name != "list":
            added.add_argument("name", metavar="NAME")
        if name == "add":
            added.add_argument("--password-stdin", action="store_true", help="read the first line of stdin")
            added.add_argument("--replace", action="store_true", help="set a new password for a known user")
            added.add_argument(
                "--role",
                choices=("viewer", "operator"),
                help="of a user of the console: reads, or changes, too",
            )


def _add_token(commands: Any) -> None:
    for name, command, words in (
        ("add", users.add_console_token, "make a token and print it, once"),
        ("delete", users.delete_console_token, "remove a token"),
        ("list", users.show_console_tokens, "names and roles"),
    ):
        added = _add(commands, name, command, words)
        added.add_argument("--file", metavar="PATH", help="the file (default: [console] users)")
        if name != "list":
            added.add_argument("name", metavar="NAME")
        if name == "add":
            added.add_argument(
                "--role",
                choices=("viewer", "operator", "limiter"),
                required=True,
                help="reads; changes, too; or asks limits for another server and nothing else",
            )


def _add_dkim(commands: Any) -> None:
    made = _add(commands, "generate", dkim.generate, "write a new key, and print the record for DNS")
    made.add_argument("domain", metavar="DOMAIN")
    made.add_argument("--selector", default="elemta", help="where DNS has it (default: elemta)")
    made.add_argument("--type", choices=dkim.KEY_TYPES, default="rsa", help="rsa (default) or ed25519")
    made.add_argument(
        "--bits", type=int, choices=(2048, 3072, 4096), default=dkim.RSA_BITS, help="of an RSA key (2048)"
    )
    made.add_argument("--file", metavar="PATH", help="the key file (default: DOMAIN.SELECTOR.key)")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


if __name__ == "__main__":
    console()
