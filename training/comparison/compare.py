"""`surematch compare`: several losses trained on the same rows, splits and seeds, in one table and one plot.

Every loss meets the same classes never seen at the same seed, so differences are told pair by pair: which classes are
left out moves MAP@R far more than a loss does. What is finished is kept in `compare.json` and never trained again.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from index.data.rows import Row
from index.encoders.files import modality_of
from index.encoders.pictures import read_content
from index.errors import SettingsError
from index.verbs.settings import parse
from index.verbs.terminal import styled
from training.comparison.page import render_comparison
from training.comparison.settings import CompareSettings
from training.config import TrainSettings
from training.data.rows import data_fingerprint
from training.objectives import check_options
from training.objectives.without_effect import check_effect_of_loss
from training.runs.folder import EVALUATION, REPORT
from training.runs.run import can_resume, command_of, given, positional, start_of

RESULTS, PAGE = "compare.json", "compare.html"
MEASURED = "held-out rows, among all that trained"
"""Earlier versions measured otherwise, so that their figures cannot stand beside ours."""
MEASURES = ("seen_recall_at_1", "unseen_recall_at_1", "unseen_map_at_r", "seconds")

OWN = ("scale", "margin", "margin-warmup", "scale-start", "lead", "head-learning-rate", "per-class")
"""Settings that a loss can have for itself, beside its options."""

Train = Callable[[TrainSettings, Console], dict[str, Any]]


def compare_losses(
    settings: CompareSettings, train: Train, console: Console, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Trains what is not finished yet with `train`, and writes and returns the comparison.

    `seeds` are trained instead of the first `settings.seeds`, by who shares them out among processes.
    Raises `SettingsError` when `settings.out` holds a comparison of other data or settings, or is not one of ours.
    """
    plans = {
        (loss, seed): _plan(settings, loss, seed) for loss in settings.losses for seed in seeds or range(settings.seeds)
    }
    identity = _identity(settings, _plan(settings, settings.losses[0].partition(":")[0], 0))
    runs = _earlier(settings, identity)
    for (loss, seed), plan in plans.items():
        if _key(loss, seed) not in runs:
            check_effect_of_loss(plan, str(plan.loss))
            check_options(str(plan.loss), {"scale": plan.scale, "margin": plan.margin, **plan.options})
    for at, ((loss, seed), plan) in enumerate(plans.items(), 1):
        key = _key(loss, seed)
        if key in runs:
            continue
        console.print(styled(f"{at} of {len(plans)}:", "bold"), f"{loss}, seed {seed}")
        again = can_resume(plan.out)
        if not again and plan.out.exists():
            shutil.rmtree(plan.out)  # finished, but the process died before its figures were written
        record = train(plan.model_copy(update={"resume": again}), console)
        runs[key] = _figures(loss, seed, record)
        if not settings.keep_models:
            _keep_report(plan.out)
        _write(settings.out, {"identity": identity, "runs": runs})
    chosen = [runs[_key(loss, seed)] for loss, seed in plans]
    comparison = {"command": command_of("compare", settings), "losses": summarise(chosen), "runs": chosen}
    _write(settings.out, {"identity": identity, **comparison, "runs": runs})
    (settings.out / PAGE).write_text(render_comparison(comparison), encoding="utf-8")
    return comparison


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a loss, in the order of `runs`: mean and standard deviation of each measure over the seeds.

    `ahead` is the mean and deviation of its unseen MAP@R minus that of the first loss at the same seed. The deviation
    is None for one seed.
    """
    losses = list(dict.fromkeys(run["loss"] for run in runs))
    first = {run["seed"]: run["unseen_map_at_r"] for run in runs if run["loss"] == losses[0]}
    entries = []
    for loss in losses:
        own = [run for run in runs if run["loss"] == loss]
        ahead = [run["unseen_map_at_r"] - first[run["seed"]] for run in own]
        entries.append(
            {
                "loss": loss,
                "seeds": len(own),
                **{name: _mean([run[name] for run in own]) for name in MEASURES},
                "ahead": _mean(ahead),
            }
        )
    return entries


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "sd": None}
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else None}


def _plan(settings: CompareSettings, loss: str, seed: int) -> TrainSettings:
    """The training of one loss at one seed. Raises `SettingsError` for a loss or option that does not exist."""
    name, *options = loss.split(":")
    words = [*map(positional, settings.data), *given("--out", str(settings.out / _key(loss, seed))), "--loss", name]
    own = [option for option in options if option.partition("=")[0].replace("_", "-") in OWN]
    for option in own:
        flag, _, value = option.partition("=")
        words += given(f"--{flag.replace('_', '-')}", value)
    for option in options:
        if option not in own:
            words += ["--options", option]
    words += ["--seed", str(seed), "--unseen-classes", str(settings.unseen_classes)]
    for field in ("text", "label", "encoder", "epochs", "batch_size", "learning_rate"):
        if field in settings.model_fields_set:
            words += given(f"--{field.replace('_', '-')}", str(getattr(settings, field)))
    if settings.skip_faulty:
        words.append("--skip-faulty")
    if settings.recipe is not None:
        words += given("--config", str(settings.recipe))
    return parse(TrainSettings, words)


def _identity(settings: CompareSettings, plan: TrainSettings) -> dict[str, Any]:
    """What every run shares: data and encoder by their content, and the settings but for loss and seed. `plan` has
    none of a loss's own.
    """
    faulty: list[Row] = []  # each training refuses them, or names and skips them
    rows = read_content(modality_of(plan.encoder), settings.data, text=plan.text, label=plan.label, faulty=faulty)
    shared = {
        name: value
        for name, value in plan.shaping().items()
        if name not in ("loss", "seed", "config") and (name != "options" or value)
    }
    content = {"data": data_fingerprint(rows), "measured": MEASURED, **start_of(plan.encoder), **shared}
    return dict(json.loads(json.dumps(content)))


def _earlier(settings: CompareSettings, identity: dict[str, Any]) -> dict[str, Any]:
    """The finished runs of `settings.out`, none where it is new."""
    path = settings.out / RESULTS
    if settings.out.exists() and not settings.out.is_dir():
        raise SettingsError(f"{settings.out} is a file. Name a folder with --out.")
    if not settings.out.exists() or not any(settings.out.iterdir()):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, runs = content["identity"], content["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not path.exists() and all(_is_ours(folder) for folder in settings.out.iterdir()):
            return {}  # stopped in its first training
        raise SettingsError(
            f"{settings.out} exists and is not a comparison that can be continued ({error}). Name another folder with "
            "--out."
        ) from error
    differ = [name for name in sorted(before.keys() | identity.keys()) if before.get(name) != identity.get(name)]
    if differ:
        shown = "; ".join(f"{name} was {before.get(name)!r}, is {identity.get(name)!r}" for name in differ)
        raise SettingsError(
            f"{settings.out} holds a comparison of other data or settings: {shown}. Continue with the same, or name "
            "another folder with --out."
        )
    return dict(runs)


def _is_ours(folder: Path) -> bool:
    return bool(re.fullmatch(r"\.?[a-z0-9.=_-]+-seed\d+(\.run|\.[a-z0-9_]+)?", folder.name))


def _figures(loss: str, seed: int, record: dict[str, Any]) -> dict[str, Any]:
    metrics = record["metrics"]
    held_out, start = metrics["held_out"] or {}, metrics["start"] or {}
    return {
        "loss": loss,
        "seed": seed,
        "seen_recall_at_1": held_out.get("recall_at_1"),
        "unseen_recall_at_1": metrics["unseen"]["recall_at_1"],
        "unseen_map_at_r": metrics["unseen"]["map_at_r"],
        "seconds": record["seconds"],
        "before": {
            "seen_recall_at_1": start.get("recall_at_1"),
            "unseen_recall_at_1": metrics["unseen_start"]["recall_at_1"],
            "unseen_map_at_r": metrics["unseen_start"]["map_at_r"],
        },
    }


def _keep_report(folder: Path) -> None:
    """Deletes the model of a finished run but for what tells about it."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (REPORT, EVALUATION, "training.json", "training.toml"):
            path.unlink()


def _write(out: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: a comparison that dies while writing keeps what it had."""
    temporary = out / f".{RESULTS}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / RESULTS)


def _key(loss: str, seed: int) -> str:
    return f"{loss.replace(':', '.')}-seed{seed}"
