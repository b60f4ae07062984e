"""All benchmarks, one report: `make bench` runs every part and writes docs/benchmarks.md and its pictures.

    python benchmarks/bench_all.py [--only simplex losses ...] [--out docs] [--write-only]
    python benchmarks/bench_all.py --only simplex -- --threads 1    # a look: with its own arguments, nothing is written

`make bench-NAME` runs one part (`bench-service` two) and writes its section. What it found is kept in --results, with
the machine, the day and the commit, and the report is made of whatever lies there: a part can be repeated alone, and
parts of different machines stand side by side, each under its own. A part that fails or is missing is named in the
report until it is measured, and the exit status is 1, as it is where a peer does not run; one whose data are not here
is named, too, and is no failure. --write-only writes the report again; an interrupted run does so, too. --data names
the folder of the data sets where that is not ../shared/data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import psutil
import raw
from kept import processor
from outcome import SKIPPED, Against, Outcome, Table, ended, shown, spread

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
"""Where a part leaves everything it measured."""


@dataclass(frozen=True)
class Part:
    """One benchmark: its script and arguments, and the command that a reader types for it alone."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    data: bool = False
    """Whether it takes the folder of the data sets by `--data`."""

    @property
    def command(self) -> str:
        return f"make bench-{self.name}"


MILLION = ("--size", "1000000", "--dimension", "128", "--seconds", "3", "--peers", "hnswlib")
MILLION += ("--engines", "flat", "hnsw", "ivf", "ivf-pq", "sq8")
"""Without usearch, whose graph takes longest: it stands beside ours with a hundred thousand. And without `auto`, which
is one of the others."""
MINILM = ("--encoder", "minilm", "--seeds", "1", "--most", "80")
MINILM += ("--methods", "ours", "plain softmax", "MultipleNegativesRanking")
"""One seed, fewer rows and one peer, which takes more than half of the time."""
CHARACTERS = ("--part", "omniglot", "--seeds", "1", "--losses")
"""Two networks at a time, as many as there are cores."""
FINETUNED = ("--part", "finetuned", "--seeds", "2")
STATIC = ("--encoder", "static", "--tasks", "banking77", "--seeds", "10", "--unseen-classes", "0", "0.2")
"""An encoder that trains in seconds, so that there can be splits enough to tell a bias from chance."""
PARTS = (
    Part("simplex", "bench_simplex.py"),
    Part("training", "bench_training.py", data=True),
    Part("training-minilm", "bench_training.py", MINILM, data=True),
    Part("losses", "bench_losses.py", ("--tasks", "banking77", "smart-home"), data=True),
    Part("losses-clinc", "bench_losses.py", ("--tasks", "clinc150"), data=True),
    Part("heads", "bench_heads.py"),
    Part("images", "bench_images.py", ("--part", "orl"), data=True),
    Part("images-in-turn", "bench_images.py", ("--part", "orl-in-turn", "--seeds", "1"), data=True),
    Part("images-omniglot", "bench_images.py", (*CHARACTERS, "softmax", "am-softmax"), data=True),
    Part("images-omniglot-taylor", "bench_images.py", (*CHARACTERS, "softmax", "taylor"), data=True),
    Part("faces", "bench_faces.py", ("--part", "people")),
    Part("faces-pairs", "bench_faces.py", ("--part", "pairs")),
    Part("calibration", "bench_calibration.py", data=True),
    Part("calibration-finetuned", "bench_calibration.py", (*FINETUNED, "--tasks", "banking77"), data=True),
    Part("calibration-static", "bench_calibration.py", (*FINETUNED, *STATIC), data=True),
    Part("calibration-finetuned-clinc", "bench_calibration.py", (*FINETUNED, "--tasks", "clinc150"), data=True),
    Part("index", "bench_index.py"),
    Part("index-million", "bench_index.py", MILLION),
    Part("service-own", "bench_service.py", ("--part", "flat", "hnsw", "text")),
    Part("service-peers", "bench_service.py", ("--part", "peers")),
    Part("bulk", "bench_bulk.py"),
    Part("first-answer", "bench_first_answer.py", data=True),
    Part("pages", "bench_pages.py", data=True),
)


NO_DATA = "skipped, its data are not here"


@dataclass(frozen=True)
class Measured:
    """What a part found, the machine it ran on, the day and the commit it was begun at, and how long it took."""

    machine: str
    outcome: Outcome
    begun: str
    seconds: float | None = None

    def keep(self, path: Path) -> None:
        """Writes it without the raw figures, which no report shows."""
        content = {**asdict(self), "outcome": asdict(replace(self.outcome, figures=None))}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def kept(cls, path: Path) -> Measured:
        content = json.loads(path.read_text(encoding="utf-8"))
        outcome = Outcome.of(content["outcome"])
        return cls(content["machine"], outcome, content.get("begun", ""), content.get("seconds"))


def run(part: Part, results: Path, minutes: float, data: Path | None) -> str | None:
    """Runs it and keeps what it found in `results`; None, or why there is no result (`NO_DATA`: no failure)."""
    path, begun = BUILD / f"{part.name}.json", today()
    path.unlink(missing_ok=True)
    print(f"\n=== {part.name}: {part.command}", flush=True)
    started = time.perf_counter()
    arguments = ["--json", str(path)]
    if data is not None and part.data:
        arguments += ["--data", str(data.resolve())]
    code = finish(part, arguments, minutes)
    if code is None:
        return f"not finished after {minutes:g} minutes"
    if code == SKIPPED:
        return NO_DATA
    seconds = round(time.perf_counter() - started)
    print(f"=== {part.name}: {seconds} s", flush=True)
    if code or not path.is_file():
        return f"ended with status {code} before it was done"
    try:
        Measured(machine(), raw.read(part.name, path), begun, seconds).keep(results / path.name)
    except (LookupError, TypeError, ValueError) as error:
        return f"left a result that cannot be read ({type(error).__name__}: {error})"
    return None


def today() -> str:
    """The day, and the commit where this is a clone; changed files are told."""
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output([*git, "rev-parse", "--short=7", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        sources = ["--", "*.py", "*.toml", "constraints.txt"]
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno", *sources], text=True)
        return f"{time.strftime('%Y-%m-%d')}, commit {commit.strip()}{' with changes' if changed else ''}"
    return time.strftime("%Y-%m-%d")


def finish(part: Part, arguments: list[str], minutes: float) -> int | None:
    """The exit status of its script; None, with everything it started ended, where it took longer."""
    command = [sys.executable, str(HERE / part.script), *part.arguments, *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        return process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:  # the terminal has told the script as well: it has a while to clean up
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        raise
    finally:
        if process.poll() is None:
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def machine() -> str:
    """What it ran on, in one paragraph."""
    memory = [int(line.split()[1]) for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu", "numpy", "sentence-transformers"))
    size = f"{(memory[0] if memory else 0) / 2**20:.0f} GiB"
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{processor() or platform.machine()}, {os.cpu_count()} cores, {size}, {system}; {packages}."


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def draw(table: Table, path: Path) -> None:
    """The plotted column as horizontal bars, with whiskers where the cells tell a spread."""
    assert table.plot is not None
    at = table.columns.index(table.plot)
    names = [str(row[0]) for row in table.rows]
    if len(set(names)) < len(names):  # the second column tells them apart
        names = [f"{row[0]}, {row[1]}" for row in table.rows]
    found = zip(names, (spread(row[at]) for row in table.rows), strict=True)
    drawn = [(name, figure) for name, figure in found if figure is not None]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.26 * len(drawn)), layout="constrained")
    middle = [value for _, (_, value, _) in drawn]
    ranges = [[value - low for _, (low, value, _) in drawn], [high - value for _, (_, value, high) in drawn]]
    whiskers = {"xerr": ranges, "ecolor": "0.3", "capsize": 2} if any(map(any, ranges)) else {}
    axes.barh([str(place) for place in range(len(drawn))], middle, color="#4269d0", **whiskers)
    axes.set_yticks(range(len(drawn)), [name for name, _ in drawn])
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel(table.plot)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


OWN = {
    *("softmax", "plain softmax", "am-softmax, s = 15", "start", "raw pixels"),
    *("raw cosine", "(cos + 1) / 2", "platt", "isotonic", "temperature", "venn-abers"),
}
"""Rows that our own code runs beside ours: other settings and simpler methods."""


def behind(outcomes: list[Outcome]) -> list[str]:
    """The first section: every comparison in which somebody else is ahead, one line for each peer of a table."""
    every = [(outcome.title, one) for outcome in outcomes for one in outcome.comparisons()]
    return [
        "## Where others are ahead",
        "",
        "Compared is what training and calibration do by default (with queries and without), each map, loss and "
        "engine, and each way to ask the service, of MiniLM its 8-bit export, in every column where more or less is "
        "better; medians and means, without regard to their spread. The untrained encoder costs nothing, which is not "
        "compared. Figures that are printed alike are level. With a filter no peer is asked. In each line the largest "
        "distance comes first.",
        *(line for outcome in outcomes for line in _missing(outcome)),
        "",
        "### Other projects",
        "",
        *_ahead([(title, one) for title, one in every if not _own(one.peer)]),
        "### Other methods and settings, run by our own code",
        "",
        *_ahead([(title, one) for title, one in every if _own(one.peer)]),
    ]


def _missing(outcome: Outcome) -> Iterator[str]:
    """A paragraph for each peer that could not be asked."""
    for name, why in outcome.missing.items():
        yield f"\n**{name} did not run** ({outcome.title}): {' '.join(why.split())}"


def _own(peer: str) -> bool:
    return peer in OWN or peer.startswith("PCA-")


def _ahead(every: list[tuple[str, Against]]) -> list[str]:
    """How often and where the others of these comparisons are ahead; figures that are printed alike are level."""
    groups: dict[tuple[str, str, str], list[Against]] = {}
    for title, one in every:
        if one.ratio < 1 and shown(one.theirs) != shown(one.ours):
            groups.setdefault((title, one.where, one.peer), []).append(one)
    if not groups:
        return [f"Nowhere, of {len(every):,} comparisons.", ""]
    lines = [
        f"In {sum(map(len, groups.values())):,} of {len(every):,} comparisons.",
        "",
        "| part | | which | ahead in: its figure (ours) |",
        "|---|---|---|---|",
    ]
    for (title, where, peer), found in sorted(groups.items(), key=lambda group: min(one.ratio for one in group[1])):
        told = (f"{one.what}: {shown(one.theirs)} ({shown(one.ours)})" for one in sorted(found, key=lambda o: o.ratio))
        lines.append(f"| {title} | {where} | {peer} | {'; '.join(told)} |")
    return [*lines, ""]


def section(part: Part, measured: Measured, out: Path) -> list[str]:
    outcome = measured.outcome
    begun = f", {measured.begun}" if measured.begun else ""
    took = "" if measured.seconds is None else f", took {measured.seconds:,.0f} s"
    lines = [f"## {outcome.title}", "", f"`{part.command}`{begun}{took}", "", measured.machine, ""]
    if outcome.versions:
        lines += ["Beside " + ", ".join(f"{name} {number}" for name, number in outcome.versions.items()) + ".", ""]
    for number, table in enumerate(outcome.tables, 1):
        lines += [f"### {table.title}", ""]
        lines += [table.note, ""] if table.note else []
        lines += [table.markdown(), ""]
        if table.plot is not None:
            picture = f"bench-{part.name}-{number}.svg"
            draw(table, out / "figures" / picture)
            lines += [f"![{table.plot}: {table.title}](figures/{picture})", ""]
    return lines


def _all_took(found: dict[str, Measured], missing: Iterable[str]) -> str:
    """The time of all that were measured, once each of them knows its own."""
    seconds = [one.seconds for name, one in found.items() if name not in missing]
    if not seconds or None in seconds:
        return ""
    minutes = sum(map(float, filter(None, seconds))) / 60
    return f" The {len(seconds)} parts measured took {minutes:.0f} minutes together."


def write(results: Path, out: Path) -> None:
    found: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    for part in PARTS:
        if (path := results / f"{part.name}.json").is_file():
            found[part.name] = Measured.kept(path)
        if (failure := results / f"{part.name}.failed").is_file():
            old = "; what stands below is of an earlier run" if part.name in found else ""
            missing[part.name] = failure.read_text(encoding="utf-8").strip() + old
        elif part.name not in found:
            missing[part.name] = "not run"
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Over each part stand the command that measures it alone, the day and the commit,",
        "and the machine it ran on. Peers run on the same data and the same machine as ours, but where a note says",
        "otherwise." + _all_took(found, missing),
        "",
    ]
    for picture in (out / "figures").glob("bench-*.svg"):  # of tables that are no more
        picture.unlink()
    lines += behind([found[part.name].outcome for part in PARTS if part.name in found])
    if missing:
        lines += ["## Not measured in this run", "", *(f"- {name}: {why}" for name, why in missing.items()), ""]
    for part in PARTS:
        if part.name in found:
            lines += section(part, found[part.name], out)
    (out / "benchmarks.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"\n{out / 'benchmarks.md'}: {len(found)} of {len(PARTS)} parts")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="run these parts alone")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where what was found is kept")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--minutes", type=float, default=120, help="longest a part may take")
    parser.add_argument("--data", type=Path, help="the folder of the data sets (default: ../shared/data)")
    parser.add_argument("--write-only", action="store_true", help="run nothing, write the report of what is there")
    parser.add_argument("arguments", nargs="*", help="after --: arguments of the one part named with --only")
    options = parser.parse_args()
    if options.arguments:
        if len(options.only or []) != 1:
            parser.error("arguments after -- need one part: --only NAME -- ...")
        (part,) = (part for part in PARTS if part.name in options.only)
        code = finish(part, options.arguments, options.minutes)
        return 1 if code is None else 0 if code == SKIPPED else code
    for folder in (options.results, BUILD):
        folder.mkdir(parents=True, exist_ok=True)
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    chosen = [] if options.write_only else [part for part in PARTS if not options.only or part.name in options.only]
    results, failed = options.results.resolve(), False
    try:
        for part in chosen:
            failure = results / f"{part.name}.failed"
            if (why := run(part, results, options.minutes, options.data)) is None:
                failure.unlink(missing_ok=True)
                failed |= bool(Measured.kept(results / f"{part.name}.json").outcome.missing)
            else:
                failed |= why != NO_DATA
                failure.write_text(why + "\n", encoding="utf-8")
                print(f"{part.name}: {why}", file=sys.stderr)
    finally:  # an interrupted run has finished some
        write(results, options.out)
    return 1 if failed else 0


if __name__ == "__main__":
    ended(main)
