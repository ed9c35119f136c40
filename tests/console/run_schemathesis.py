"""Lets schemathesis ask a daemon all that its openapi.json describes: without credentials, and by role.

python tests/console/run_schemathesis.py SCHEMATHESIS [MAX_EXAMPLES]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.support.console import TOKENS, accounts
from tests.support.daemon import Daemon

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
# A list that is too long may be too large as well.
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 503]
"""
# The one does not end, and the others end the daemon, or read what is not there.
LEFT_OUT = "/v1/(events|drain|undrain|reload|spools.*)$"


def main(arguments: list[str]) -> int:
    program, examples = arguments[0], (arguments[1:] or ["10"])[0]
    with tempfile.TemporaryDirectory() as top:
        Path(top, "schemathesis.toml").write_text(CONFIG)
        users = Path(top, "console-users")
        users.write_text(accounts())
        daemon = Daemon(Path(top, "node"))
        daemon.open_console(users)
        daemon.start()
        try:
            base = daemon.console
            asked = urllib.request.Request(f"{base}/v1/openapi.json")
            asked.add_header("Authorization", f"Bearer {TOKENS['viewer']}")
            with urllib.request.urlopen(asked) as answer:
                Path(top, "openapi.json").write_bytes(answer.read())
            runs = [begin(program, examples, top, base, role) for role in ("", *TOKENS)]
            codes = [run.wait() for run in runs]
            for role in ("", *TOKENS):
                sys.stdout.write(f"as {role or 'a client without credentials'}\n")
                sys.stdout.write(Path(top, f"said-{role}").read_text())
        finally:
            daemon.kill()
    return max(codes)


def begin(program: str, examples: str, top: str, base: str, role: str) -> subprocess.Popen[bytes]:
    """Ask as one role; what is said goes to a file."""
    credentials = ["--header", f"Authorization: Bearer {TOKENS[role]}"] if role else []
    # The same questions in each run of CI.
    seed = ["--seed", "1"] if os.environ.get("CI") else []
    command = [
        *(program, "run", f"{top}/openapi.json", "--url", base, *credentials, *seed),
        *("--exclude-path-regex", LEFT_OUT, "--max-examples", examples, "--phases", "coverage,fuzzing"),
        *("--checks", ",".join(CHECKS)),
    ]
    with Path(top, f"said-{role}").open("wb") as output:
        return subprocess.Popen(command, cwd=top, stdout=output, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
