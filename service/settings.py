"""Settings of `surematch serve`: flags, `--config file.toml`, then `SUREMATCH_...` variables, then these defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, IPvAnyNetwork, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.calibration.evidence import TOP_K
from index.errors import SettingsError
from index.verbs.settings import Settings

NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
"""What a collection is called in addresses."""


class ServeSettings(Settings):
    """Serve collections: a REST API under /v1, its documentation at /docs, and a web page at /.

    Several are served by names, `NAME=FOLDER`; the first is the default one.

    Example: surematch serve collections/support --port 8080
    """

    model_config = SettingsConfigDict(env_prefix="SUREMATCH_")

    collection: CliPositionalArg[Path] = Field(
        description="folder of the collection, made by `surematch index`; or NAME=FOLDER"
    )
    more: CliPositionalArg[list[Path]] = Field([], description="further collections, by names: NAME=FOLDER")
    writable: bool = Field(
        False, description="take writes (/v1/items, feedback, snapshots) too; one process can write to a collection"
    )
    workers: int = Field(
        1, ge=1, le=64, description="processes that answer, sharing port and index; several only without --writable"
    )
    worker_silence_seconds: float = Field(
        30,
        ge=2,
        le=3600,
        description="with --workers, seconds without an answer after which a process is killed and replaced",
    )
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs --public")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose one")
    keys: Path | None = Field(
        None, description="file of API keys, made by `surematch keys`; none: nobody is asked for a key"
    )
    public: bool = Field(
        False, description="listen beyond loopback although nobody is asked for a key: whoever reaches it may search"
    )
    allowed_hosts: list[str] = Field(
        [],
        description="names this service is called by (a proxy's, say) besides those of loopback; any is with --public "
        "or --keys",
    )
    trusted_proxies: list[IPvAnyNetwork] = Field(
        [], description="addresses of proxies that say in X-Forwarded-For who asks; of others that is not heeded"
    )
    examples: list[str] = Field(
        [], max_length=8, description="questions the web page offers as a start; none: texts of a few items"
    )
    jobs: Path | None = Field(
        None, description="folder of jobs and their data: lets admins train, index and recalibrate over HTTP"
    )
    job_memory: int = Field(8 * 2**30, ge=2**28, description="bytes of memory that a job's process may take")
    traces: bool = Field(
        False, description="send OpenTelemetry traces where the OTEL_EXPORTER_OTLP_... variables say (extra otel)"
    )
    access_log: bool = Field(False, description="log a line of JSON a request: route, status, time, key; never a text")
    audit_log: Path | None = Field(
        None,
        description="file that gets a line of JSON for each search, write, feedback and operator's change: when, which "
        "key, which ids and labels, what was decided; never a text, a vector or a picture. What cannot be logged is "
        "refused",
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="largest request body; larger ones get 413")
    max_queries: int = Field(256, ge=1, le=4096, description="most queries in one request")
    max_text_chars: int = Field(10_000, ge=1, description="longest text of a query, in characters")
    max_vector_length: int = Field(16_384, ge=1, description="longest vector read before its length is checked")
    max_k: int = Field(TOP_K, ge=1, le=TOP_K, description="most hits that may be asked for a query")
    max_answer_chars: int = Field(
        32 * 2**20,
        ge=2**20,
        description="most characters of labels, texts and metadata that the hits of one request may have together",
    )
    max_items: int = Field(1000, ge=1, le=100_000, description="most items in one write")
    max_pending: int = Field(128, ge=1, description="queries that may wait or run; further requests get 503")
    deadline_seconds: float = Field(30, gt=0, description="seconds a search may take in all; then 503")
    receive_seconds: float = Field(
        10,
        gt=0,
        description="seconds a client may take to send a request's head, or its body, or to take more of an answer",
    )
    cache_bytes: int = Field(32 * 2**20, ge=0, description="memory for the vectors of recent query texts; 0: none")
    search_threads: int = Field(
        2, ge=1, le=256, description="threads that search an approximate index; an exact one uses all cores itself"
    )
    eight_bits: bool = Field(
        True,
        description="hold a large exact index in 8 bits, too: the same answers sooner, for a quarter more memory a "
        "process and a longer start",
    )
    refresh_seconds: float = Field(
        1, gt=0, description="seconds after which a read-only service looks for what another process has written"
    )
    drain_notice_seconds: float = Field(
        2, ge=0, le=60, description="after SIGTERM, seconds of answering still, with /readyz at 503, before the end"
    )

    @field_validator("port", mode="before")
    @classmethod
    def _is_no_link(cls, port: Any) -> Any:
        if isinstance(port, str) and port.startswith("tcp://"):
            raise PydanticCustomError(
                "link",
                "Kubernetes put the address of a Service called surematch there (enableServiceLinks: false in the pod "
                "prevents that)",
            )
        return port

    @property
    def folders(self) -> dict[str, Path]:
        """Folder of each collection by its name, the default one first. Raises `SettingsError`."""
        found: dict[str, Path] = {}
        for given in (self.collection, *self.more):
            name, equals, folder = str(given).partition("=")
            if not equals or not re.fullmatch(NAME, name):
                folder = str(given)
                name = re.sub(r"[^a-z0-9_-]", "-", Path(folder).absolute().name.lower())[:64].lstrip("_-") or "default"
            if name in found:
                raise SettingsError(
                    f"Two collections are called {name}: {found[name]} and {folder}. Name them: {name}-2={folder}"
                )
            found[name] = Path(folder)
        return found
