"""The pod of deployments/kubernetes/statefulset.yaml, as far as Podman can run the same."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.compose.clients import connect, greeting, page, send, wait_for
from tests.compose.engine import ROOT, Engine

Show = Callable[[str, str], None]

NAME = "elemta-0"
KUBERNETES = ROOT / "deployments" / "kubernetes"


@pytest.fixture
def container() -> dict[str, Any]:
    stateful = yaml.safe_load((KUBERNETES / "statefulset.yaml").read_text())
    return dict(stateful["spec"]["template"]["spec"]["containers"][0])


@pytest.fixture
def pod(engine: Engine, container: dict[str, Any]) -> Iterator[str]:
    """Its user, arguments, environment, configuration and mounts; a volume that its group may write to."""
    here = engine.directory / "pod"
    (here / "config").mkdir(parents=True, exist_ok=True)
    for name, text in yaml.safe_load((KUBERNETES / "configmap.yaml").read_text())["data"].items():
        (here / "config" / name).write_text(text)
    spool = here / "spool"
    (spool / "lost+found").mkdir(parents=True, exist_ok=True)
    os.chown(spool, 0, 10025)
    spool.chmod(0o2775)
    environ = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    # No Valkey here: the pod has to be ready without.
    environ |= {"NODE_ID": NAME, "VALKEY_URL": "valkey://192.0.2.1:6379/0"}
    options = [f"--env={name}={value.replace('$(NODE_ID)', NAME)}" for name, value in environ.items()]
    for name, source in (("spool", str(spool)), ("config", f"{here}/config")):
        (target,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == name]
        options.append(f"--volume={source}:{target}{':ro' if name == 'config' else ''}")
    engine.run(
        "run", "--detach", "--name", NAME, "--user", "10025:10025", "--read-only", "--tmpfs", "/tmp",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--publish", "2525:2525", "--publish", "127.0.0.1:8080:8080", *options, "elemta", *container["args"],
    )  # fmt: skip
    try:
        yield NAME
    finally:
        engine.run("rm", "--force", "--volumes", "--time", "5", NAME)


def test_the_pod_drains_before_it_is_stopped(
    engine: Engine, container: dict[str, Any], pod: str, show: Show
) -> None:
    live, ready = (container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe"))
    wait_for("the readiness probe is content", lambda: page(8080, ready)[0] == 200)
    assert greeting(2525, "198.51.100.6") == f"220 {NAME}.mx.example.com ESMTP Elemta"
    assert "queued as" in send(2525, "198.51.100.6")
    session = connect(2525, "198.51.100.6")
    session.ehlo()
    assert session.mail("someone@example.net")[0] == 250
    assert session.rcpt("box@example.com")[0] == 250
    session.docmd("DATA")
    pre_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = pre_stop[-1].replace("sleep 10", "sleep 0")
    assert drain != pre_stop[-1]
    engine.run("exec", pod, *pre_stop[:-1], drain)
    # No service leads a client here any more, and nothing kills it.
    assert page(8080, ready)[0] == 503
    assert page(8080, live)[0] == 200
    assert greeting(2525, "198.51.100.7").startswith("421 ")
    session.send("Subject: during the drain\r\n\r\nHello.\r\n.\r\n")
    assert session.getreply()[0] == 250
    session.close()
    engine.run("stop", "--time", "60", pod)
    state = json.loads(engine.run("inspect", pod))[0]["State"]
    assert state["ExitCode"] == 0, shlex.join(engine.log(pod).splitlines()[-3:])
    show("Kubernetes: preStop makes the pod unready, finishes the message, exits with 0", "503, 250, 0")
