"""docs/api.md is true: its commands run against a real server and answer with the members it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from service.problems import KINDS
from tests.service.conftest import ROOT, Server

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```(?:\s*```json\n(.*?)```)?", PAGE, re.DOTALL)


def members(value: Any) -> Any:
    """The names in a JSON value, without its data; of a list, those of its first element."""
    if isinstance(value, dict):
        return {name: members(inner) for name, inner in value.items()}
    return [members(value[0])] if isinstance(value, list) and value else None


@pytest.mark.parametrize(("commands", "shown"), BLOCKS, ids=range(len(BLOCKS)))
def test_the_examples_run_and_answer_as_shown(server: Server, commands: str, shown: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine: the examples of docs/api.md were not run")
    for command in re.split(r"\n(?=curl)", commands.strip()):
        script = command.replace("http://127.0.0.1:8000", server.url)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
        answer = json.loads(done.stdout)
        assert shown or "status" not in answer or isinstance(answer["status"], str), answer
    if shown:
        expected = members(json.loads(shown))
        got = members(answer)
        # an empty list in the answer shows no members; the sets and lists here are as long as the data makes them
        assert _same(expected, got), (expected, got)


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(_same(expected[name], got[name]) for name in expected)
    if isinstance(expected, list) and isinstance(got, list):
        return _same(expected[0], got[0])
    return expected is None or got is None


def test_every_problem_type_is_in_the_table() -> None:
    rows = {
        name for row in re.findall(r"^\| [\d, ]+ \| ([a-z, -]+) \|", PAGE, re.MULTILINE) for name in row.split(", ")
    }
    assert rows == set(KINDS)
