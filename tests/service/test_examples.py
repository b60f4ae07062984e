"""The examples people copy first are true: the README's, those of docs/api.md that write or need keys, the client's.

Each is run as it stands, against real services; only the address is another, and what takes an operator's machine.
"""

from __future__ import annotations

import asyncio
import csv
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import client as module
from tests.service.conftest import ROOT, Server, serving
from tests.service.gallery import CALIBRATION, GALLERY, KNOWN, TOPICS
from tests.service.test_docs import PAGE, members

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(page: str, heading: str, language: str = "") -> list[str]:
    """The fenced blocks of a language below a heading, up to the next heading."""
    part = re.split(r"^## ", page, flags=re.MULTILINE)
    (section,) = [text for text in part if text.startswith(heading)]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command `surematch` in `bin`, to work in."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "bin").mkdir()
    command = folder / "bin" / "surematch"
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from service.cli import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    return folder


def run(shell: Path, script: str, **more: str) -> str:
    environment = os.environ | {"PATH": f"{shell / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | more
    done = subprocess.run(
        ["bash", "-ec", script], cwd=shell, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, script + done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def writable(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = shutil.copytree(collection, tmp_path_factory.mktemp("writable") / "home")
    with serving(home, "--writable") as running:
        yield running


@pytest.fixture(scope="module")
def quick_start(shell: Path) -> list[str]:
    """The README's commands for one's own data, those before `serve` already run on a few questions."""
    pytest.importorskip("wordllama", reason="the start weights of `static` are not installed: README was not run")
    rows = [*GALLERY, *((text, label) for text, label in CALIBRATION if label)]
    for name, some in (("train.csv", rows), ("test.csv", KNOWN)):
        with (shell / name).open("w", newline="") as file:
            csv.writer(file).writerows([("text", "intent"), *some])
    (commands,) = blocks(README, "Your own data", "sh")
    before, serve = commands.strip().rsplit("\n", 1)
    assert serve.split()[:2] == ["surematch", "serve"]
    run(shell, before)
    return serve.split()[2:]


def test_the_readme_from_rows_to_answers(shell: Path, quick_start: list[str]) -> None:
    (python,) = blocks(README, "In Python", "python")
    said = subprocess.run(
        [sys.executable, "-c", python],
        cwd=shell,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert said
    curl = next(line for line in blocks(README, "Over HTTP", "sh")[0].splitlines() if line.startswith("curl"))
    (folder,) = quick_start
    with serving(shell / folder) as server:
        answer = json.loads(run(shell, curl.replace(ADDRESS, server.url)))
    (result,) = answer["results"]
    assert len(result["hits"]) == 3
    assert result["calibrated"], result["reason"]


def test_api_items_as_shown(shell: Path, writable: Server) -> None:
    (block,) = blocks(PAGE, "Items")
    pairs = re.findall(r"(curl .*?)\n(\{\"(?:sequence|id)\".*?\})$", block, re.DOTALL | re.MULTILINE)
    assert len(pairs) == block.count("curl ")
    for command, shown in pairs:
        got = json.loads(run(shell, command.replace("curl ", "curl -sS ", 1).replace(ADDRESS, writable.url)))
        expected = json.loads(shown)
        assert members(got) == members(expected), command
        assert got == {**expected, **{name: got[name] for name in ("sequence", "deleted") if name in got}}


def test_api_keys_as_shown(shell: Path, collection: Path) -> None:
    (block,) = blocks(PAGE, "Who may ask")
    add, serve, ask = block.strip().splitlines()
    key = run(shell, add).split()[-1]
    words = serve.split()[3:]
    assert words[:3] == ["--keys", "keys.json", "--host"]
    with serving(collection, "--keys", str(shell / "keys.json"), "--host", "127.0.0.1") as server:
        command = ask.replace("http://search.example:8000", server.url).replace("curl", "curl -sS")
        assert json.loads(run(shell, command, KEY=key))["name"] == "home"
        refused = json.loads(run(shell, command, KEY="wrong"))
        assert refused["status"] == 401


def examples() -> dict[str, str]:
    """The indented blocks in the client module's docstrings."""
    texts = {"module": module.__doc__ or ""} | {
        name: inspect.getdoc(what) or ""
        for name, what in inspect.getmembers(module, inspect.isclass)
        if what.__module__ == module.__name__ and what.__doc__
    }
    found = {name: re.search(r"\n\n((?:    .*\n?)+)", text) for name, text in texts.items()}
    return {name: textwrap.dedent(block[1]) for name, block in found.items() if block is not None}


@pytest.mark.parametrize("example", ["module", "Client", "AsyncClient"])
def test_the_clients_examples_run(example: str, writable: Server) -> None:
    code = examples()[example].replace(ADDRESS, writable.url)
    if "await" in code:
        code = "async def main():\n" + textwrap.indent(code, "    ")
    values = {name: getattr(module, name) for name in ("Client", "AsyncClient", "Calls")}
    exec(compile(code, f"example of {example}", "exec"), values)
    if "main" in values:
        asyncio.run(values["main"]())


def test_no_example_of_the_client_is_left_out() -> None:
    assert set(examples()) == {"module", "Client", "AsyncClient"}
    assert set(TOPICS) >= {"temperature"}  # the label they speak of
