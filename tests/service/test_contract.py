"""The OpenAPI document against the service: requests generated from it, valid and invalid, under all of schemathesis'
checks (no 5xx, only documented answers of the documented form, nothing valid refused, nothing invalid taken, ...).

SUREMATCH_CASES is the number of generated requests for each operation: few here, many in `make test-contract`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.service.conftest import ROOT, serving

CASES = int(os.environ.get("SUREMATCH_CASES", "4"))
LEAST = int(os.environ.get("SUREMATCH_LEAST", "100"))
"""Fewer requests than this in all, and the test has checked nothing."""


def test_the_service_keeps_its_contract(collection: Path, tmp_path: Path) -> None:
    # limits that generated requests run into
    limits = [
        "--max-body-bytes",
        "100000",
        "--max-queries",
        "20",
        "--max-text-chars",
        "200",
        "--max-vector-length",
        "64",
    ]
    written = shutil.copytree(collection, tmp_path / "home")
    with serving(written, "--writable", *limits) as server:
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(ROOT / "tests/service/schemathesis.toml"),
        ]
        command += ["run", f"{server.url}/openapi.json", "--max-examples", str(CASES), "--checks", "all", "--no-color"]
        often = "SUREMATCH_CASES" in os.environ
        command += ["--continue-on-failure"]
        command += ["--generation-database", "none"] if often else ["--generation-deterministic", "--seed", "1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=False)
        alive = httpx2.get(f"{server.url}/readyz").status_code
    lines = (done.stdout + done.stderr).splitlines()
    said = "\n".join(line[:500] for line in lines[-300:])
    assert done.returncode == 0, said
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated, said
    assert int(generated[1]) >= LEAST, said
    assert alive == 200
