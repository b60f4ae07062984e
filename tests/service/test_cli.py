"""The command: help, verbs, and one paragraph for whatever goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import EntryPoint, packages_distributions
from pathlib import Path

import pytest

from index.errors import DataError, SettingsError
from index.verbs.settings import Settings, parse
from index.verbs.terminal import Terminal
from service import cli
from service.settings import ServeSettings
from tests.service.conftest import ROOT, Server, serving


def run(*words: str, code: str = "from service.cli import main; main") -> subprocess.CompletedProcess[str]:
    script = f"import sys; {code.rpartition(';')[0]}; sys.exit({code.rpartition(';')[2].strip()}(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the installed verbs by entry points of this module."""

    def install(**functions: str) -> None:
        entries = [
            EntryPoint(name, f"{__name__}:{function}", "surematch.verbs") for name, function in functions.items()
        ]
        monkeypatch.setattr(cli, "entry_points", lambda group: entries)

    return install


def wrong_data(words: list[str]) -> int:
    raise DataError("rows.csv, row 3: the text is empty. Fill it or remove the row.")


def interrupted(words: list[str]) -> int:
    raise KeyboardInterrupt


def without_torch(words: list[str]) -> int:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def without_ours(words: list[str]) -> int:
    raise ModuleNotFoundError("No module named 'oops'", name="oops")


def three(words: list[str]) -> int:
    return 3


def test_help_lists_the_verbs_in_the_order_of_the_work(
    verbs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verbs(serve="three", extra="three", train="three")
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert shown.index("  train") < shown.index("  serve") < shown.index("  extra")
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == shown


def test_help_loads_no_verb(verbs: Callable[..., None]) -> None:
    verbs(train="there_is_no_such_function")
    assert cli.main(["--help"]) == 0


def test_a_fault_is_said_in_words_that_a_terminal_does_not_obey(
    verbs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verbs()
    assert cli.main(["\x1b[31mred"]) == 2
    assert "'\\u001b[31mred'" in capsys.readouterr().err


def test_an_unknown_verb_gets_a_suggestion(verbs: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    verbs(evaluate="three", search="three")
    assert cli.main(["serach"]) == 2
    assert "Did you mean 'search'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "code", "says"),
    [
        ("three", 3, ""),
        ("wrong_data", 2, "surematch verb: rows.csv, row 3"),
        ("interrupted", 130, ""),
        ("without_torch", 2, "surematch[transformers]"),
    ],
)
def test_what_goes_wrong_is_one_paragraph(
    verbs: Callable[..., None], capsys: pytest.CaptureFixture[str], function: str, code: int, says: str
) -> None:
    verbs(verb=function)
    assert cli.main(["verb"]) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == (1 if says else 0)


@pytest.mark.parametrize(
    ("verb", "extra"), [("train", "train"), ("compare", "train"), ("push", "train"), ("demo", "demo")]
)
def test_the_extra_named_is_all_that_the_verb_needs(
    verbs: Callable[..., None], capsys: pytest.CaptureFixture[str], verb: str, extra: str
) -> None:
    verbs(**{verb: "without_torch"})
    assert cli.main([verb]) == 2
    assert f"pip install 'surematch[{extra}]'" in capsys.readouterr().err


def test_every_package_of_an_extra_is_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = defaultdict(list)
    for package, distributions in packages_distributions().items():
        for distribution in distributions:
            imported[_canonical(distribution)].append(package)
    for extra in extras.keys() - {"test"}:
        needed = {_canonical(re.split(r"[^\w-]", line)[0]) for line in extras[extra]} - {"surematch"}
        for name in needed:
            assert {name.replace("-", "_"), *imported[name]} & set(cli.EXTRAS[extra]), f"{extra}: {name}"


def _canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def test_a_fault_of_ours_keeps_its_traceback(verbs: Callable[..., None]) -> None:
    verbs(verb="without_ours")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["verb"])


TALK = """
import sys
from importlib.metadata import EntryPoint
from service import cli
cli.entry_points = lambda group: [EntryPoint("verb", "tests.service.test_cli:talk", group)]
sys.exit(cli.main(["verb"]))
"""


OUTPUTS = [
    pytest.param([sys.executable, "-c", TALK], "verb", id="a verb"),
    pytest.param([sys.executable, "-c", TALK.replace(":talk", ":print_table")], "verb", id="a verb that prints"),
    pytest.param([sys.executable, "-m", "service.cli", "--help"], "--help", id="help"),
    pytest.param([sys.executable, "-m", "service.cli", "--version"], "--version", id="version"),
    pytest.param([sys.executable, "-c", TALK.replace(":talk", ":long_help")], "verb", id="help of a verb"),
]


@pytest.mark.parametrize(("command", "name"), OUTPUTS)
def test_a_reader_that_goes_away_is_no_error(command: list[str], name: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    assert process.wait(60) == 141
    assert process.stderr
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("command", "name"), OUTPUTS)
def test_output_without_room_is_one_line(command: list[str], name: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"surematch {name}: there is no room left")
    assert done.stderr.count("\n") == 1


def test_output_that_is_closed_is_not_missed() -> None:
    code = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", code, TALK], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


SAID = ["café", "漢字", "😀", "a\udce9b"]  # the last as an argument that is not UTF-8 arrives


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_outside_the_encoding_are_escaped(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TALK.replace(":talk", ":say")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""
    out = done.stdout.decode(encoding)
    assert json.loads(out) == SAID
    assert [said for said in SAID if said in out] == {"ascii": [], "latin-1": SAID[:1], "utf-8": SAID[:3]}[encoding]


def say(words: list[str]) -> int:
    sys.stdout.write(json.dumps(SAID, ensure_ascii=False) + "\n")
    return 0


class Told(Settings):
    __doc__ = "A long story. " * 10_000


def long_help(words: list[str]) -> int:
    parse(Told, ["--help"])
    return 0


def print_table(words: list[str]) -> int:
    Terminal().print("a table of results")
    return 0


def talk(words: list[str]) -> int:
    for _ in range(100_000):
        sys.stdout.write("a line of output\n")
    return 0


SERVE = "from service.cli import serve, main; from importlib.metadata import EntryPoint; from service import cli; \
cli.entry_points = lambda group: [EntryPoint('serve', 'service.cli:serve', group)]; main"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "--port", "0"], "nowhere"),  # the demo may be running on the default
        (["nowhere", "--port", "70000"], "--port"),
        (["nowhere", "--port", "soon"], "--port"),
        (["nowhere", "--host", "0.0.0.0"], "--public"),
        (["nowhere", "--host", "192.0.2.1", "--public"], "192.0.2.1"),
        (["nowhere", "--colour", "red"], "colour"),
        ([], "COLLECTION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_serve_refuses_in_one_paragraph(words: list[str], says: str) -> None:
    done = run("serve", *words, code=SERVE)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said_before_anything_is_loaded(collection: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", str(collection), "--port", str(taken.getsockname()[1]), code=SERVE)
    assert done.returncode == 2
    assert "--port" in done.stderr


TAKEN = SERVE.replace(
    "; main",
    "; listen, other = cli._listen, []; cli._listen = lambda settings: "
    "(listen(settings), other.append(listen(settings)), other[0].listen())[0]; main",
)
"""Another program is as far, and quicker."""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_taken_while_the_service_starts_is_said(workers: str, collection: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    done = run("serve", str(collection), "--port", port, "--workers", workers, code=TAKEN)
    assert done.returncode == 2
    said = f"127.0.0.1:{port} was taken by another program while this one started. Choose another"
    assert done.stderr.count(said) == 1
    assert "Traceback" not in done.stderr


def test_serve_help_shows_every_setting_with_its_default() -> None:
    done = run("serve", "--help", code=SERVE)
    assert done.returncode == 0
    for flag in ("--host", "--port", "--public", "--max-body-bytes", "--max-k", "127.0.0.1", "8000"):
        assert flag in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_requested_stop_exits_with_zero(collection: Path, number: signal.Signals) -> None:
    with serving(collection) as server:
        server.process.send_signal(number)
        assert server.process.wait(30) == 0


def test_the_server_listens_on_loopback_only(server: Server) -> None:
    assert server.address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("SUREMATCH_WORKERS", "900", "SUREMATCH_WORKERS: Input should be less than or equal to 64, got '900'"),
        ("SUREMATCH_PORT", "tcp://10.0.0.1:8000", "SUREMATCH_PORT: Kubernetes put the address of a Service"),
    ],
)
def test_a_wrong_setting_of_the_environment_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=re.escape(told)):
        parse(ServeSettings, ["nowhere"])
    monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match="--workers: "):
        parse(ServeSettings, ["nowhere", "--workers", "900"])


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("MemoryError()", "surematch verb: it needs more memory than the 8,589,934,592 bytes that it may take"),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried')", "it needs more memory than"),
        (
            "PermissionError(13, 'Permission denied', 'model/a.json')",
            "model/a.json: Permission denied. Check its",
        ),
        ("RuntimeError('another fault')", "Traceback"),
    ],
)
def test_a_lack_of_memory_or_of_permission_is_said_in_a_line(raised: str, said: str) -> None:
    code = f"""
import resource
from importlib.metadata import EntryPoint
from service import cli
resource.setrlimit(resource.RLIMIT_DATA, (2**33, 2**33))
def verb(words):
    raise {raised}
EntryPoint.load = lambda self: verb
cli.entry_points = lambda group: [EntryPoint("verb", "a:b", group)]
raise SystemExit(cli.main(["verb"]))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert said in told.stderr
    assert (told.returncode == 2) is ("Traceback" not in said) is ("Traceback" not in told.stderr)
