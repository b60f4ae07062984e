"""The files in deploy/ are true: their flags exist, their probes answer, their panels show metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from index.verbs.settings import parse
from service.http.access import OPEN, scope_needed
from service.settings import ServeSettings
from service.telemetry.metrics import Metrics
from tests.service.conftest import ROOT, Server

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
POD = KUBERNETES[0]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "words", [COMPOSE["services"]["surematch"]["command"], POD["containers"][0]["args"]], ids=["compose", "kubernetes"]
)
def test_the_services_flags_exist_and_ask_for_keys(words: list[str]) -> None:
    assert words[0] == "serve"
    settings = parse(ServeSettings, words[1:])
    assert settings.keys is not None
    assert not settings.public
    assert settings.collection == Path("/collection")
    assert settings.port == 8000


def test_what_compose_mounts_is_there_or_is_said_to_be_made_first() -> None:
    said = (DEPLOY / "compose.yaml").read_text().partition("services:")[0]
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                name = volume[2:].partition(":")[0]
                assert (DEPLOY / name).is_file() or f"deploy/{name}" in said, name


def test_prometheus_asks_where_the_metrics_are() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert scope_needed("GET", "/metrics") == "search"
    assert job["authorization"]["credentials_file"] in str(COMPOSE["services"]["prometheus"]["volumes"])


def test_kubernetes_names_no_scrape_that_would_be_refused_and_says_how_to_give_a_key() -> None:
    assert "annotations" not in KUBERNETES[0]["spec"]["template"]["metadata"]
    said = (DEPLOY / "kubernetes.yaml").read_text().partition("<<END\n")[2].partition("#   END\n")[0]
    monitor = yaml.safe_load(said.replace("#   ", ""))["spec"]
    assert monitor["selector"] == KUBERNETES[0]["spec"]["selector"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == POD["containers"][0]["ports"][0]["name"]
    assert endpoint["authorization"]["credentials"]["key"] == "prometheus.key"


SECRETS = sorted(
    {
        file
        for page in [*DEPLOY.glob("*.yaml"), ROOT / "docs" / "api.md"]
        for line in page.read_text(encoding="utf-8").splitlines()
        if "surematch keys add" in line
        for file in re.findall(r"(?:--file|>) (\S+)", line)
    }
)
"""What the documented steps write keys to."""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git here")
def test_git_does_not_take_the_keys_that_the_documented_steps_write() -> None:
    assert len(SECRETS) >= 4
    told = subprocess.run(["git", "check-ignore", "--no-index", *SECRETS], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.split() == SECRETS


def test_a_source_distribution_takes_no_keys_and_no_collections(tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in (*SECRETS, "runs/demo/items.sqlite", "deploy/compose.yaml", "index/build.py", "service/web/app.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    taken = {file.distribution_path for file in sdist.SdistBuilder(str(tmp_path)).recurse_included_files()}
    assert taken == {"deploy/compose.yaml", "index/build.py", "service/web/app.js"}


def test_the_image_asks_itself_whether_it_is_ready(server: Server) -> None:
    """Whatever the proxy, and the port that it was told to listen on."""
    image = (ROOT / "Dockerfile").read_text()
    asks = json.loads(re.search(r"^HEALTHCHECK .*\\\n  CMD (\[.*\])$", image, re.M)[1])  # type: ignore[index]
    port = server.url.rpartition(":")[2]
    for asked, code in ((port, 0), ("9", 1)):
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "SUREMATCH_PORT": asked}
        done = subprocess.run([sys.executable, *asks[1:]], env=environment, capture_output=True, check=False)
        assert done.returncode == code, done.stderr


def test_the_image_listens_where_its_port_says(monkeypatch: pytest.MonkeyPatch) -> None:
    image = (ROOT / "Dockerfile").read_text()
    words = json.loads(re.search(r"^CMD (\[.*\])$", image, re.M)[1])  # type: ignore[index]
    assert "SUREMATCH_PORT=8000" in image
    monkeypatch.setenv("SUREMATCH_PORT", "9000")
    assert parse(ServeSettings, words[1:]).port == 9000


def test_probes_need_no_key_and_the_drain_fits_into_the_grace_period() -> None:
    (container,) = POD["containers"]
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
    assert paths == ["/readyz", "/readyz", "/healthz"]
    assert set(paths) <= set(OPEN)
    notice = parse(ServeSettings, container["args"][1:]).drain_notice_seconds
    from service.server import DRAIN_SECONDS

    assert notice + DRAIN_SECONDS < POD["terminationGracePeriodSeconds"]
    readiness = container["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < notice
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    metrics = Metrics()
    known: set[str] = set()
    for family in metrics.registry.collect():
        known |= {family.name, *(f"{family.name}_{end}" for end in ("total", "bucket", "sum", "count"))}
    panels: list[Any] = json.loads((DEPLOY / "grafana" / "surematch.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in _names(target["expr"])}
    assert len(panels) >= 10
    assert asked <= known, asked - known
    shown = {name for name in known if name in asked}
    unseen = [f.name for f in metrics.registry.collect() if not any(name.startswith(f.name) for name in shown)]
    assert not unseen
    assert len({panel["id"] for panel in panels}) == len(panels)


def _names(expression: str) -> list[str]:
    return re.findall(r"surematch_\w+", expression)


def test_kubernetes_sets_no_variable_of_ours_for_the_service_of_that_name() -> None:
    assert POD["enableServiceLinks"] is False
