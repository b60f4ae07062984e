"""The benchmarks' report: which comparisons its first section is made of, and what a table may not leave out."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("outcome")


ROWS: list[list[Any]] = [
    ["ours", "658 (601 to 702)", 9.5, 0.98, 0.97, 4],
    ["theirs", "1,213 (1,100 to 1,300)", 12.0, 0.91, 0.97, 8],
    ["silent", None, 12.0, "0.975 ± 0.004", "0.97 ± 0.01", 8],
]
COLUMNS = ["", "requests/s", "p50 ms", "right", "said", "beam"]


def test_every_column_of_a_peer_is_compared(outcome: Any) -> None:
    beside = outcome.Beside(
        "ours", ["theirs", "silent"], higher=["requests/s"], lower=["p50 ms"], near={"right": "said"}, neither=["beam"]
    )
    made = outcome.Table("flat", COLUMNS, ROWS, beside=[beside])
    found = {(one.peer, one.what): round(one.ratio, 3) for one in made.against()}
    assert found == {
        ("theirs", "requests/s"): round(658 / 1213, 3),
        ("theirs", "p50 ms"): round(12 / 9.5, 3),
        ("theirs", "right: away from said"): 6.0,
        ("silent", "p50 ms"): round(12 / 9.5, 3),
        ("silent", "right: away from said"): 0.5,
    }
    again = outcome.Outcome.of({"name": "n", "title": "t", "against": [], "tables": [outcome.asdict(made)]})
    assert again.comparisons() == list(made.against())


@pytest.mark.parametrize(
    "beside",
    [
        {"higher": ["requests/s"]},  # forgets the others
        {"higher": ["requests/s", "p50 ms", "right", "said", "beam", "p99"]},
        {"ours": "nobody", "higher": COLUMNS[1:]},
    ],
)
def test_no_column_and_no_row_is_left_out_by_forgetting_it(outcome: Any, beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"flat: (columns unknown|no rows)"):
        outcome.Table("flat", COLUMNS, ROWS, beside=[outcome.Beside(**{"ours": "ours", "peers": ["theirs"], **beside})])


def test_the_first_section_names_every_figure_in_which_a_peer_is_ahead(outcome: Any, tmp_path: Path) -> None:
    beside = outcome.Beside(
        "ours", ["theirs"], higher=["requests/s", "right"], lower=["p50 ms"], neither=["said", "beam"]
    )
    made = outcome.Outcome("simplex", "Service", [outcome.Table("flat", COLUMNS, ROWS, beside=[beside])])
    all_parts = importlib.import_module("bench_all")
    all_parts.Measured("a machine", made, "2026-11-28, commit abc1234", 1203).keep(tmp_path / "simplex.json")
    (tmp_path / "figures").mkdir()
    all_parts.write(tmp_path, tmp_path)
    report = (tmp_path / "benchmarks.md").read_text()
    projects, own = report.split("### Other methods and settings")
    assert "In 1 of 3 comparisons." in projects
    assert "Nowhere, of 0 comparisons." in own
    assert "| Service | flat | theirs | requests/s: 1,213 (658) |" in report
    assert "- bulk: not run" in report
    assert "`make bench-simplex`, 2026-11-28, commit abc1234, took 1,203 s\n\na machine\n" in report


def test_what_our_own_code_runs_is_told_apart_and_figures_printed_alike_are_level(outcome: Any) -> None:
    against = [
        outcome.Against("banking77", "ece", 0.02, "isotonic", 0.01, False),
        outcome.Against("faces", "recall", 0.5, "PCA-20", 0.6),
        outcome.Against("flat", "queries/s", 157.6, "raw FAISS", 157.9),
    ]
    lines = importlib.import_module("bench_all").behind([outcome.Outcome("n", "Part", [], against)])
    projects, own = "\n".join(lines).split("### Other methods and settings")
    assert "Nowhere, of 1 comparisons." in projects
    assert "In 2 of 2 comparisons." in own
    assert "| Part | faces | PCA-20 | recall: 0.6000 (0.5000) |" in own


GOOD = """
import argparse, json, sys
parser = argparse.ArgumentParser()
parser.add_argument("--json"); parser.add_argument("--data")
given = parser.parse_args()
outcome = {"name": "n", "title": "Part " + sys.argv[0][-4], "tables": [], "against": []}
outcome["versions"] = {"data": str(given.data)}
open(given.json, "w").write(json.dumps(outcome))
"""


@pytest.fixture
def run(outcome: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `bench_all` over programs, in that order, and returns its exit status and the report."""
    all_parts = importlib.import_module("bench_all")
    monkeypatch.setattr(all_parts, "BUILD", tmp_path / "build")

    def run(*flags: str, **programs: str) -> tuple[int, str]:
        for name, text in programs.items():
            (tmp_path / f"{name}.py").write_text(text)
        parts = tuple(all_parts.Part(name, str(tmp_path / f"{name}.py"), data=True) for name in programs)
        monkeypatch.setattr(all_parts, "PARTS", parts)
        monkeypatch.setattr(sys, "argv", ["bench_all", f"--out={tmp_path}", f"--results={tmp_path / 'kept'}", *flags])
        try:
            status = all_parts.main()
        except KeyboardInterrupt:
            status = -2
        return status, (tmp_path / "benchmarks.md").read_text()

    return run


def test_a_part_that_failed_is_named_until_it_succeeds(run: Any, tmp_path: Path) -> None:
    fails = "import sys; sys.exit(3)"
    unreadable = GOOD + "\nopen(given.json, 'w').write('{}')"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "bench-gone-1.svg").touch()
    status, report = run(a=GOOD, b=fails, c=unreadable)
    assert status == 1
    assert not list((tmp_path / "figures").iterdir()), "pictures of tables that are no more"
    assert "- b: ended with status 3 before it was done\n- c: left a result that cannot be read (" in report
    assert "## Part a\n\n`make bench-a`, 20" in report
    status, report = run("--only", "a", a=GOOD, b=fails, c=unreadable)
    assert status == 0
    assert "- b: ended with status 3" in report
    _, report = run("--only", "b", a=GOOD, b=GOOD, c=unreadable)
    assert "- b:" not in report
    _, report = run("--only", "b", a=GOOD, b=fails, c=unreadable)
    assert "- b: ended with status 3 before it was done; what stands below is of an earlier run" in report
    assert "## Part b" in report


def test_a_part_whose_data_cannot_be_fetched_is_named_and_no_failure(run: Any) -> None:
    skips = "import sys; sys.exit(77)"
    status, report = run(a=GOOD, b=skips)
    assert status == 0
    assert "- b: skipped, its data are not here\n" in report
    run("--only", "b", a=GOOD, b=GOOD)
    status, report = run("--only", "b", a=GOOD, b=skips)
    assert status == 0
    assert "not here; what stands below is of an earlier run" in report
    status, _ = run(a=skips, b="import sys; sys.exit(1)")
    assert status == 1


def test_a_peer_that_did_not_run_is_named_first_and_fails_the_run(run: Any) -> None:
    without = GOOD.replace(
        'outcome["versions"] =', "outcome[\"missing\"] = {'peer': 'no\\ncompiler'}; outcome[\"versions\"] ="
    )
    assert without != GOOD
    status, report = run(a=without)
    assert status == 1
    assert report.index("**peer did not run** (Part a): no compiler\n") < report.index("### Other projects")


def test_an_interrupted_run_reports_what_it_finished(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    all_parts = importlib.import_module("bench_all")
    finish = all_parts.finish

    def interrupted(part: Any, *given: Any) -> Any:
        if part.name == "b":
            raise KeyboardInterrupt
        return finish(part, *given)

    monkeypatch.setattr(all_parts, "finish", interrupted)
    status, report = run(a=GOOD, b=GOOD, c=GOOD)
    assert status == -2
    assert "## Part a" in report
    assert "- b: not run\n- c: not run" in report


def test_the_data_sets_may_lie_elsewhere(run: Any, tmp_path: Path) -> None:
    _, report = run(f"--data={tmp_path}", a=GOOD)
    assert f"Beside data {tmp_path}." in report


def test_an_interrupted_benchmark_ends_with_a_line() -> None:
    program = "import outcome\ndef main(): raise KeyboardInterrupt\noutcome.ended(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "Interrupted."


def test_a_peer_that_ends_between_two_questions_is_told_from_a_fault_of_ours(
    outcome: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    peers = importlib.import_module("benchmarks.service_peers")
    (tmp_path / "peer_programs.py").write_text('print(\'{"version": "1"}\', flush=True)\ninput()\n')
    monkeypatch.setattr(peers, "__file__", str(tmp_path / "service_peers.py"))
    monkeypatch.setattr(peers, "environment", lambda *_: sys.executable)
    monkeypatch.setattr(peers, "_until_idle", lambda _: None)
    nothing = np.zeros((1, 1), np.float32)
    with peers.PEERS["txtai"](tmp_path / "c", nothing, nothing, 1.0, None) as peer:
        for _ in range(2):
            with pytest.raises(peers.PeerError):
                peer.load(1)
    with (
        pytest.raises(OSError, match="ours"),
        peers.PEERS["txtai"](tmp_path / "c", nothing, nothing, 1.0, None),
    ):
        raise OSError("ours")


def test_collections_of_other_code_leave_the_cache(outcome: Any, tmp_path: Path) -> None:
    kept = importlib.import_module("kept")
    (tmp_path / "made-by-other").mkdir()
    kept.built(tmp_path).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [kept.built(tmp_path).name]
