"""What is below deployments/ agrees with itself and with the daemon; `make compose-test` runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from elemta import __version__
from elemta.config import Config, load

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
COMPOSE = DEPLOYMENTS / "compose"
KUBERNETES = DEPLOYMENTS / "kubernetes"
DOCKERFILE = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")
FILES = ("docker-compose.yml", "docker-compose-multinode.yml")


def services(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((COMPOSE / file).read_text(encoding="utf-8"))["services"])


def nodes(file: str) -> dict[str, Any]:
    return {name: service for name, service in services(file).items() if service["image"] == "elemta"}


def published(file: str) -> dict[str, str]:
    """Port of the host to what is before and behind it."""
    ports = [port for service in services(file).values() for port in service["ports"]]
    found = {}
    for port in ports:
        address, host, inside = port.rsplit(":", 2)
        assert host not in found, f"{host} is published twice"
        found[host] = f"{address}:{inside}"
    return found


def config_of(file: str, node: Mapping[str, Any]) -> Config:
    """What a node of a compose file reads."""
    (mounted,) = [volume for volume in node["volumes"] if volume.endswith(":/etc/elemta.toml:ro")]
    environ = {
        name: value.replace("${ELEMTA_HOSTNAME:-mx.example.com}", "mx.example.com")
        for name, value in node["environment"].items()
    }
    return load(str(COMPOSE / mounted.split(":")[0]), environ)


def documents() -> dict[tuple[str, str], Any]:
    found = {}
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                found[document["kind"], document["metadata"]["name"]] = document
    return found


def the_pod() -> dict[str, Any]:
    return dict(documents()["StatefulSet", "elemta"]["spec"]["template"]["spec"])


# Compose


def test_the_compose_files_publish_the_ports_that_users_know() -> None:
    one, three = (published(file) for file in FILES)
    assert set(one) == {"2525", "8080", "6379"}
    assert set(three) == {"25", "2525", "2526", "2527", "8080", "8081", "8082", "6379"}
    for host, rest in {**one, **three}.items():
        for_the_world = host.startswith("25")
        assert rest.startswith("${SMTP_ADDRESS:-0.0.0.0}:" if for_the_world else "127.0.0.1:"), host


@pytest.mark.parametrize("file", FILES)
def test_the_nodes_read_a_configuration_that_fits_their_ports(file: str) -> None:
    names = set()
    for node in nodes(file).values():
        config = config_of(file, node)
        names.add(config.server.node_id)
        assert config.listeners[0].endpoint == "tcp:2525"
        assert config.listeners[0].proxy_protocol_from == ()
        assert config.metrics.endpoint == "tcp:8080"
        assert config.spool.directory == "/var/spool/elemta"
        assert config.resources.valkey_url
        assert int(node["stop_grace_period"].removesuffix("s")) > config.server.shutdown_grace
        inside = [port.rsplit(":", 1)[1] for port in node["ports"]]
        assert inside == ["2525", "8080"]
    assert len(names) == len(nodes(file))


@pytest.mark.parametrize("file", FILES)
def test_each_node_has_a_queue_of_its_own_and_writes_nowhere_else(file: str) -> None:
    volumes = [
        volume.split(":")[0]
        for node in nodes(file).values()
        for volume in node["volumes"]
        if ":/var/spool/elemta" in volume
    ]
    assert len(set(volumes)) == len(nodes(file))
    for node in nodes(file).values():
        assert node["read_only"] is True
        assert node["cap_drop"] == ["ALL"]
        assert node["security_opt"] == ["no-new-privileges"]


@pytest.mark.parametrize("file", FILES)
def test_the_compose_files_build_from_the_top_of_the_tree(file: str) -> None:
    for node in nodes(file).values():
        context = (COMPOSE / node["build"]["context"]).resolve()
        assert context == ROOT
        assert (context / node["build"]["dockerfile"]).read_text() == DOCKERFILE
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        # Brackets: a directory that may be missing.
        assert all((ROOT / name).exists() for name in source.split() if "[" not in name), source


def test_haproxy_leads_to_the_listener_that_wants_its_header() -> None:
    file = "docker-compose-multinode.yml"
    servers = dict(
        re.findall(r"^ *server (\S+) \1:(\d+)$", (COMPOSE / "haproxy.cfg").read_text(), re.MULTILINE)
    )
    assert set(servers) == set(nodes(file))
    for name, node in nodes(file).items():
        (balanced,) = [
            listener for listener in config_of(file, node).listeners if listener.proxy_protocol_from
        ]
        assert balanced.endpoint == f"tcp:{servers[name]}"
        assert not any(port.endswith(f":{servers[name]}") for port in node["ports"]), (
            "nobody else may come there"
        )


def test_only_the_balancers_address_may_bring_a_proxy_header() -> None:
    file = "docker-compose-multinode.yml"
    document = yaml.safe_load((COMPOSE / file).read_text())
    address = ip_address(document["services"]["haproxy"]["networks"]["default"]["ipv4_address"])
    (pool,) = document["networks"]["default"]["ipam"]["config"]
    assert address in ip_network(pool["subnet"])
    assert address not in ip_network(pool["ip_range"]), "another container could get it"
    for node in nodes(file).values():
        assert "networks" not in node
        trusted = [
            network
            for listener in config_of(file, node).listeners
            for network in listener.proxy_protocol_from
        ]
        assert trusted == [ip_network(f"{address}/32")]


def test_what_the_image_has_built_in_is_a_good_configuration() -> None:
    config = load(str(COMPOSE / "elemta.toml"), {})
    assert config.metrics.endpoint == "tcp:8080"
    assert "EXPOSE 2525 8080" in DOCKERFILE
    assert "${1:-8080}" in (COMPOSE / "ready").read_text()
    assert config.without_effect() == ()


# Kubernetes


def test_kustomize_takes_every_manifest() -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in KUBERNETES.glob("*.yaml"))


def test_the_manifests_select_each_other() -> None:
    found = documents()
    stateful = found["StatefulSet", "elemta"]["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget", "elemta"]["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"] for port in stateful["template"]["spec"]["containers"][0]["ports"]}
    for name in ("elemta", "elemta-nodes"):
        service = found["Service", name]["spec"]
        assert service["selector"] == labels
        assert {port["targetPort"] for port in service["ports"]} <= ports
    assert found["Service", stateful["serviceName"]]["spec"]["clusterIP"] == "None"
    valkey = found["Deployment", "elemta-valkey"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service", "elemta-valkey"]["spec"]["selector"] == valkey
    assert valkey != labels, "mail would be led to Valkey"


def test_the_nodes_in_kubernetes_read_a_configuration_that_fits_their_ports(tmp_path: Path) -> None:
    found = documents()
    (container,) = the_pod()["containers"]
    file = tmp_path / "elemta.toml"
    file.write_text(found["ConfigMap", "elemta"]["data"]["elemta.toml"])
    given = {variable["name"]: variable for variable in container["env"]}
    assert given["NODE_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    key = given["VALKEY_URL"]["valueFrom"]["secretKeyRef"]
    url = found["Secret", key["name"]]["stringData"][key["key"]]
    environ = {"NODE_ID": "elemta-0", "VALKEY_URL": url}
    for name, variable in given.items():
        if "value" in variable:
            environ[name] = variable["value"].replace("$(NODE_ID)", "elemta-0")
    config = load(str(file), environ)
    assert config.server.node_id == "elemta-0"
    assert config.server.hostname == "elemta-0.mx.example.com"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config.listeners[0].endpoint == f"tcp:{ports['smtp']}"
    assert config.metrics.endpoint == f"tcp:{ports['metrics']}"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert config.spool.directory.startswith(f"{mounts['spool']}/"), "a volume has a lost+found of root's"
    assert container["args"][-1] == environ["ELEMTA_CONFIG"] == f"{mounts['config']}/elemta.toml"
    # The pause behind drain, the sessions, and what comes after them.
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1].split()[-1])
    assert the_pod()["terminationGracePeriodSeconds"] >= pause + config.server.shutdown_grace + 60


def test_the_network_policy_lets_mail_in_and_the_nodes_to_what_they_need_only() -> None:
    found = documents()
    labels = found["StatefulSet", "elemta"]["spec"]["template"]["metadata"]["labels"]
    policy = found["NetworkPolicy", "elemta"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ports = {port["name"] for port in the_pod()["containers"][0]["ports"]}
    for_all = [rule for rule in policy["ingress"] if "from" not in rule]
    assert [port["port"] for rule in for_all for port in rule["ports"]] == ["smtp"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    assert all(rule.get("to") and rule.get("ports") for rule in policy["egress"])
    to_pods = [target for rule in policy["egress"] for target in rule["to"] if "podSelector" in target]
    valkey = found["Deployment", "elemta-valkey"]["spec"]["template"]["metadata"]["labels"]
    assert [target["podSelector"]["matchLabels"] for target in to_pods] == [valkey]
    for rule in policy["egress"]:
        blocks = [target["ipBlock"] for target in rule["to"] if "ipBlock" in target]
        assert not blocks or [port["port"] for port in rule["ports"]] == [25]
        for block in blocks:
            networks = [ip_network(each) for each in block["except"]]
            inside = "10.1.2.3" if ":" not in block["cidr"] else "fd00::1"
            assert any(ip_address(inside) in network for network in networks)


def test_the_probes_ask_for_what_they_are_for() -> None:
    (container,) = the_pod()["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # A full disk or a drain is no reason to kill.
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1].startswith("elemtactl drain;")


def test_the_pod_is_the_images_user_and_has_no_rights() -> None:
    (user,) = re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    pod = the_pod()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_images_are_the_same_everywhere() -> None:
    assert the_pod()["containers"][0]["image"].endswith(f"/elemta:{__version__}")
    images = {service["image"] for file in FILES for service in services(file).values()} - {"elemta"}
    found = {re.fullmatch(r"\$\{[A-Z]+_IMAGE:-(.+)\}", image)[1] for image in images}  # type: ignore[index]
    (container,) = documents()["Deployment", "elemta-valkey"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] in found
    # The images that `make compose-test` has stand-ins for.
    made = (ROOT / "tests/compose/images.py").read_text(encoding="utf-8")
    assert all(f'"{image}"' in made for image in found)
    assert len(found) == 2


# systemd


def test_the_template_is_the_unit_of_the_package_but_for_names() -> None:
    unit = (ROOT / "debian/elemta.service").read_text(encoding="utf-8")
    template = (DEPLOYMENTS / "systemd/elemta@.service").read_text(encoding="utf-8")
    for there, here in (
        ("/etc/elemta/%i.toml", "/etc/elemta.toml"),
        ("/var/spool/elemta-%i", "/var/spool/elemta"),
        ("SyslogIdentifier=elemta-%i", "SyslogIdentifier=elemta"),
        (", instance %i", ""),
    ):
        assert there in template
        template = template.replace(there, here)
    assert settings(template) == settings(unit)


def settings(unit: str) -> list[str]:
    return [line for line in unit.splitlines() if line and not line.startswith("#")]


def test_the_nodes_of_one_host_read_a_good_configuration() -> None:
    config = load(str(DEPLOYMENTS / "systemd/node.toml"), {})
    assert config.spool.directory == f"/var/spool/elemta-{config.server.node_id}"
    assert config.without_effect() == ()
