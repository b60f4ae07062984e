"""The verbs for what turns scores into probabilities: calibrations (list, choose) and recalibrate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.collection import Collection
from index.storage.versions import Version
from index.verbs.cli_items import JSON, tell
from index.verbs.settings import Settings, parse


class CalibrationsSettings(Settings):
    """List the calibrations a collection has had, oldest first, which is in use and which do not fit any more; or go to
    another with --use."""

    model_config = SettingsConfigDict(cli_prog_name="surematch calibrations")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    use: str | None = Field(None, description="id of the calibration to serve from now on")
    json_: bool = JSON


class RecalibrateSettings(Settings):
    """Fit the calibration again, for the items as they are and with users' feedback; the index stays.

    At least 50 different queries with feedback are needed, known and unknown. What it changed is measured on feedback
    that was not fitted on; `surematch calibrations --use` goes back.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch recalibrate")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    feedback: bool = Field(True, description="use what users said was right (--no-feedback: only the stored queries)")
    json_: bool = JSON


def calibrations(argv: Sequence[str]) -> int:
    """`surematch calibrations COLLECTION [--use ID]`"""
    settings = parse(CalibrationsSettings, argv)
    with closing(Collection.open(settings.collection, writable=settings.use is not None, compacts=False)) as collection:
        if settings.use is not None:
            collection.use_calibration(settings.use)
        listed, used = collection.calibrations(), collection.state.calibration_id
        stale, reason, warnings = list(collection.stale_calibrations()), collection.uncalibrated(), collection.warnings
    told = {
        "in_use": used,
        "reason": reason,
        "stale": stale,
        "calibrations": [asdict(version) for version in listed],
        "warnings": warnings,
    }
    lines = [_line(version, used, stale) for version in listed] or ["This collection has no calibration."]
    if reason is not None:
        lines.append(f"Without probabilities: {reason}")
    said = [warning for warning in warnings if warning not in (reason or "")]
    return tell(told, "\n".join([*lines, *said]), settings.json_)


def recalibrate(argv: Sequence[str]) -> int:
    """`surematch recalibrate COLLECTION`"""
    settings = parse(RecalibrateSettings, argv)
    with closing(Collection.open(settings.collection, writable=True, compacts=False)) as collection:
        replaced = collection.state.calibration_id
        version = collection.recalibrate(feedback=settings.feedback)
        warnings = [] if collection.calibration is None else collection.calibration.warnings
    words = f"Calibration {version.id} is in use, fitted again on {_queries(version)}.{_change(version.change)}"
    told = {**asdict(version), "replaced": replaced, "warnings": warnings}
    return tell(told, "\n".join([words, *warnings]), settings.json_)


def _line(version: Version, used: str | None, stale: Sequence[str]) -> str:
    ece = "" if version.ece is None else f", ECE {version.ece:.4f}"
    mark = "*" if version.id == used else " "
    fits = " (does not fit the items as they are now)" if version.id in stale else ""
    return f"{mark} {version.id}  {version.made[:19]}  {version.cause}: {_queries(version)}{ece}{fits}"


def _queries(version: Version) -> str:
    fed = version.queries.get("feedback")
    of_feedback = f" ({fed['queries']} of them users' feedback)" if fed else ""
    return f"{version.queries.get('known')} known and {version.queries.get('unknown')} unknown queries{of_feedback}"


def _change(change: dict[str, Any] | None) -> str:
    if change is None:
        return ""
    if "why_not" in change:
        return f" What it changed was not measured: {change['why_not']}"
    before, after = change["before"], change["after"]
    return (
        f" On {change['queries']} feedback queries that neither was fitted on: ECE {before['ece']:.4f} before, "
        f"{after['ece']:.4f} after (a perfect one would show {after['ece_floor']:.4f}); "
        f"NLL {_number(before['nll'])} before, {_number(after['nll'])} after."
    )


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"
