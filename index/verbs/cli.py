"""The verbs that work on collections: index, evaluate, search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.build import build_collection
from index.calibration import thresholds
from index.calibration.calibrate import DEFAULT
from index.calibration.calibrators import CALIBRATORS
from index.calibration.conformal import CoverageFor
from index.calibration.outcome import map_name
from index.calibration.page import write_page
from index.calibration.pairs import evaluate_pairs, seconds_of
from index.calibration.sources import Held, trained_rows
from index.collection import MAX_K, Collection
from index.data.rows import read_rows
from index.encoders.by_name import check_encoder, encoder_folder, load_encoder
from index.encoders.files import modality_of
from index.encoders.onnx_export import LEAST_AGREEMENT, Backend
from index.engines.choice import NAMES
from index.errors import CalibrationError, SettingsError
from index.evaluate import evaluate as measure
from index.items.filters import read_filter
from index.storage.folder import CONFIG, ENCODER, read_config
from index.storage.place import can_resume
from index.upkeep.compaction import UNKNOWN_SHARE
from index.verbs import console
from index.verbs.outputs import check_output
from index.verbs.picture_pairs import picture_pairs
from index.verbs.reading import SKIP, Reader, check_columns, indexed_label, trained_label
from index.verbs.settings import Settings, parse
from index.verbs.terminal import Terminal, print_json
from index.verbs.usable import Remembering

_TEXT = Field("text", description="column that holds the text")
_REPORT = Field(None, description="also write the calibration report, with pictures, to this HTML file")
_JSON = Field(False, alias="json", description="print one JSON object instead of tables")


class IndexSettings(Settings):
    """Encode labelled rows, index them, and calibrate the probabilities on queries the encoder has not seen.

    Calibration queries come from --calibrate files; without them, from rows that the encoder was not trained on: a part
    of them, or where that is too little, and with an untrained encoder, items that are left out one by one. Unknown
    queries (whose label is not in the gallery) come from --unknown files; without enough of them, labels are hidden to
    imitate them.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch index")

    model: CliPositionalArg[str] = Field(
        description="trained encoder's folder, `static`, `minilm`, `sface`, a picture encoder's ONNX file, or a hub id"
    )
    data: CliPositionalArg[list[Path]] = Field(
        description="items: CSV, TSV, JSONL or Parquet files; of pictures also zips, or a folder of folders"
    )
    out: Path = Field(description="folder of the new collection")
    text: str = _TEXT
    label: str | None = Field(None, description="column that holds the label [default: as in training]")
    id: str | None = Field(None, description="column that holds the item's id [default: file name and line]")
    calibrate: list[Path] = Field([], description="files of queries whose label is in the gallery, never trained on")
    unknown: list[Path] = Field([], description="files of queries that belong to no label of the gallery")
    unknown_share: float = Field(
        UNKNOWN_SHARE, gt=0, lt=1, description="share of unknown queries expected in use; probabilities depend on it"
    )
    calibrator: str = Field(DEFAULT, description=f"what turns scores into probabilities: {', '.join(CALIBRATORS)}")
    engine: str = Field("auto", description=f"what finds the nearest items: {', '.join(NAMES)}")
    skip_faulty: bool = SKIP
    overwrite: bool = Field(False, description="replace the collection at --out")
    resume: bool | None = Field(None, description="continue an interrupted build of --out (--no-resume: start over)")
    backend: Backend = Field("auto", description="what runs a neural encoder; auto: onnx where it is installed")
    least_agreement: float = Field(
        LEAST_AGREEMENT, gt=-1, le=1, description="mean cosine to torch's vectors below which an export is refused"
    )
    workers: int | None = Field(None, ge=1, le=256, description="encoding processes [default: one a core]")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the random splits")
    report: Path | None = _REPORT
    json_: bool = _JSON


class EvaluateSettings(Settings):
    """Measure a collection on labelled queries it has never seen: recall, calibration, no-match, coverage of sets.

    With --pair-text, measure an encoder on pairs of texts or pictures instead: how likely are both of one class?
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch evaluate")

    collection: CliPositionalArg[Path] = Field(
        description="folder of the collection; with --pair-text also an encoder's folder or name"
    )
    data: CliPositionalArg[list[Path]] = Field(
        description="files of queries whose label is in the gallery, or of pairs"
    )
    pair_text: str | None = Field(
        None,
        description="column of a second text, or path of a picture: rows are pairs, and --label says whether both are "
        "of one class",
    )
    pictures: Path | None = Field(
        None, description="folder from which the paths in pairs of pictures count [default: the folder of their file]"
    )
    unknown: list[Path] = Field([], description="files of queries that belong to no label of the gallery")
    text: str = _TEXT
    label: str | None = Field(None, description="column that holds the label [default: as in training]")
    skip_faulty: bool = SKIP
    map: str = Field(
        "softmax", description="map to probabilities: softmax, sparsemax, entmax15, taylor, or entmax:ALPHA"
    )
    report: Path | None = _REPORT
    answers: Path | None = Field(
        None, description="also write every query with its answer, and whether that is right, to this CSV file"
    )
    json_: bool = _JSON


class SearchSettings(Settings):
    """Ask a collection: what is this, and how sure are you?"""

    model_config = SettingsConfigDict(cli_prog_name="surematch search")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    texts: CliPositionalArg[list[str]] = Field(
        description="one or more texts to ask about; picture files where the collection holds pictures"
    )
    k: int = Field(5, ge=1, le=MAX_K, description="hits to show for each text")
    map: str = Field(
        "softmax", description="map to probabilities: softmax, sparsemax, entmax15, taylor, or entmax:ALPHA"
    )
    coverage: float | None = Field(None, gt=0, lt=1, description="also give the set that holds the truth this often")
    coverage_for: CoverageFor = Field(
        "mixed", description="promise the coverage to all queries together, or to known and unknown ones apart"
    )
    explain: bool = Field(False, description="also tell why: the evidence and the items behind the likeliest outcomes")
    filter: str | None = Field(
        None, description='only show items that pass, as JSON: {"brand": "acme", "price": {"lt": 20}}'
    )
    json_: bool = _JSON


MAX_COST = 1e12
"""Sums of costs stay finite."""


class ThresholdSettings(Settings):
    """Where to draw the line: from costs, a precision or an FPIR to a threshold on the match probability.

    Give --false-match-cost and --miss-cost, or --precision, or --fpir. The promise rests on the collection's held-out
    calibration queries; one that their number cannot support is refused.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch threshold")

    collection: CliPositionalArg[Path] = Field(description="folder of the collection")
    false_match_cost: float | None = Field(None, gt=0, le=MAX_COST, description="cost of calling a match that is wrong")
    miss_cost: float | None = Field(None, gt=0, le=MAX_COST, description="cost of not calling a match that is right")
    precision: float | None = Field(None, gt=0, lt=1, description="share of called matches that must be right")
    fpir: float | None = Field(None, gt=0, lt=1, description="share of unknown queries that may be called a match")
    json_: bool = _JSON


def index(argv: Sequence[str]) -> int:
    """`surematch index MODEL DATA --out COLLECTION`"""
    settings = parse(IndexSettings, argv)
    try:
        return _index(settings)
    except KeyboardInterrupt:
        return console.stopped(settings.out, can_resume(settings.out))


def _index(settings: IndexSettings) -> int:
    inputs = [*settings.data, *settings.calibrate, *settings.unknown, Path(settings.model)]
    check_output("--report", settings.report, "an HTML file", inputs)
    check_encoder(settings.model)
    modality = modality_of(settings.model)
    files = [*settings.data, *settings.calibrate, *settings.unknown]
    check_columns(modality, files, settings.text, settings.label)
    label = settings.label or trained_label(Path(settings.model), settings.data[0])
    reader = Reader(modality, text=settings.text, label=label, skip=settings.skip_faulty)
    rows, opened = reader.stream(settings.data), None
    held = Held(reader.read(settings.calibrate), reader.read(settings.unknown, require_label=False))
    with console.progress(quiet=settings.json_) as progress:
        if reader.skips:
            with encoder_folder(settings.model) as folder:
                opened = Remembering(load_encoder(folder))
                rows, *asked = (reader.usable(opened, some, progress) for some in (rows, held.known, held.unknown))
            held = Held(*asked)
        built = build_collection(
            settings.model,
            rows,
            settings.out,
            id_column=settings.id,
            label_column=label,
            held=held,
            unknown_share=settings.unknown_share,
            calibrator=settings.calibrator,
            engine=settings.engine,
            overwrite=settings.overwrite,
            resume=settings.resume,
            workers=settings.workers,
            backend=settings.backend,
            least_agreement=settings.least_agreement,
            seed=settings.seed,
            progress=progress,
            opened=opened,
        )
    if settings.report is not None:
        _write_fit(settings.out, settings.report)
    reader.tell()  # beside JSON, too: of a job, its log is what is seen
    if settings.json_:
        print_json(built | reader.as_json())
    else:
        console.show_collection(Terminal(), built, settings.out)
    return 0


def _write_fit(path: Path, report: Path) -> None:
    """The page about what the collection's calibration measured on its own held-out queries."""
    collection = Collection.open(path)
    collection.close()
    fitted = collection.calibration
    if fitted is None:
        raise CalibrationError(f"{report}: not written, there is nothing to report. {collection.uncalibrated()}")
    write_page(report, f"{collection.name}: calibration", fitted.held_out, fitted.report, fitted.warnings)


def evaluate(argv: Sequence[str]) -> int:
    """`surematch evaluate COLLECTION QUERIES`"""
    settings = parse(EvaluateSettings, argv)
    inputs = [*settings.data, *settings.unknown, settings.collection]
    check_output("--report", settings.report, "an HTML file", inputs)
    check_output("--answers", settings.answers, "a CSV file", [*inputs, *filter(None, [settings.report])])
    if settings.pair_text is not None:
        return _evaluate_pairs(settings, settings.pair_text)
    map_name(settings.map)  # before anything is read or encoded
    if settings.pictures is not None:
        raise SettingsError("--pictures: belongs to pairs of pictures, which --pair-text asks for. Leave it away.")
    config = read_config(settings.collection)  # what is no collection is said before any data is read for it
    modality = modality_of(str(settings.collection / ENCODER))
    check_columns(modality, [*settings.data, *settings.unknown], settings.text, settings.label)
    label = settings.label or indexed_label(config, settings.collection / ENCODER, settings.data[0])
    reader = Reader(modality, text=settings.text, label=label, skip=settings.skip_faulty)
    known, unknown = reader.read(settings.data), reader.read(settings.unknown, require_label=False)
    pictures = {row.image.path for row in [*known, *unknown] if row.image is not None}
    check_output("--report", settings.report, "an HTML file", pictures)
    check_output("--answers", settings.answers, "a CSV file", pictures)
    collection = Collection.open(settings.collection)
    try:
        with console.progress(quiet=settings.json_) as progress:
            if reader.skips:
                collection.encoder = Remembering(collection.encoder)
                known, unknown = (reader.usable(collection.encoder, some, progress) for some in (known, unknown))
            report = measure(
                collection,
                known,
                unknown,
                map=settings.map,
                progress=progress,
                page=settings.report,
                table=settings.answers,
            )
    finally:
        collection.close()
    if settings.json_:
        print_json(report | reader.as_json())
    else:
        reader.tell()
        console.show_evaluation(Terminal(), report)
    return 0


def _evaluate_pairs(settings: EvaluateSettings, column: str) -> int:
    if settings.report is not None:
        raise SettingsError("--report: there is no page for pairs yet. Use --json.")
    if settings.answers is not None:
        raise SettingsError("--answers: there is no table for pairs yet. Use --json.")
    if settings.unknown:
        raise SettingsError("--unknown: pairs have no gallery, so no query is outside it. Leave the flag away.")
    if settings.map != EvaluateSettings.model_fields["map"].default:
        raise SettingsError("--map: a pair has one probability and no distribution over labels. Leave the flag away.")
    if settings.label is None:
        raise SettingsError("--label: name the column that says whether both are of one class (1 or 0).")
    place = settings.collection
    name = str(place / ENCODER if (place / CONFIG).is_file() else place)
    check_encoder(name)
    modality = modality_of(name)
    if settings.pictures is not None and modality == "text":
        raise SettingsError("--pictures: this encoder takes texts, so the pairs hold no paths. Leave it away.")
    reader = Reader(modality, text=settings.text, label=settings.label, skip=settings.skip_faulty)
    rows = read_rows(settings.data, text=settings.text, label=settings.label)
    others = seconds_of(rows, column)
    with encoder_folder(name) as folder, console.progress(quiet=settings.json_) as progress:
        encoder, count = load_encoder(folder), len(rows)
        if modality == "image":
            encoder = Remembering(encoder)  # a picture may be in many pairs
            rows, others = picture_pairs(rows, others, settings.pictures, reader, encoder, progress)
        report = evaluate_pairs(encoder, rows, others, trained_rows(folder), progress)
    if len(rows) < count:
        left = f"{count - len(rows)} of {count} pairs hold a picture that was left out and were not measured."
        report["warnings"].append(left)
    if settings.json_:
        print_json(report | reader.as_json())
    else:
        reader.tell()
        console.show_pairs(Terminal(), report)
    return 0


def search(argv: Sequence[str]) -> int:
    """`surematch search COLLECTION TEXT`"""
    settings = parse(SearchSettings, argv)
    condition = None if settings.filter is None else read_filter(settings.filter)
    if settings.coverage is None and settings.coverage_for != "mixed":
        raise SettingsError("--coverage-for: says what --coverage holds for. Give that, too: --coverage 0.95")
    collection = Collection.open(settings.collection)
    try:
        how: dict[str, Any] = settings.model_dump(include={"k", "map", "coverage", "coverage_for", "explain"})
        how["filter"] = condition
        if collection.encoder.modality == "image":
            answers = collection.search_images([Path(name) for name in settings.texts], **how)
        else:
            answers = collection.search(settings.texts, **how)
    finally:
        collection.close()
    if settings.json_:
        found = [{"text": text, **asdict(answer)} for text, answer in zip(settings.texts, answers, strict=True)]
        print_json({"model": collection.model_id, "snapshot": collection.snapshot_id, "answers": found})
    else:
        for text, answer in zip(settings.texts, answers, strict=True):
            console.show_answer(Terminal(), text, answer)
    return 0


def threshold(argv: Sequence[str]) -> int:
    """`surematch threshold COLLECTION --precision 0.99`"""
    settings = parse(ThresholdSettings, argv)
    by_costs = settings.false_match_cost is not None or settings.miss_cost is not None
    if by_costs + (settings.precision is not None) + (settings.fpir is not None) != 1:
        raise SettingsError("Give one of: --false-match-cost with --miss-cost, --precision, --fpir.")
    if by_costs and (settings.false_match_cost is None or settings.miss_cost is None):
        raise SettingsError("--false-match-cost and --miss-cost belong together: only their ratio matters.")
    collection = Collection.open(settings.collection)
    collection.close()
    reason = collection.uncalibrated()
    if collection.calibration is None or reason is not None:
        raise CalibrationError(f"{settings.collection}: no threshold without a calibration. {reason}")
    sample, warnings = collection.calibration.held_out, [*collection.state.warnings, *collection.calibration.warnings]
    if settings.false_match_cost is not None and settings.miss_cost is not None:
        found = thresholds.from_costs(sample, settings.false_match_cost, settings.miss_cost)
    elif settings.precision is not None:
        found = thresholds.from_precision(sample, settings.precision)
    else:
        found = thresholds.from_fpir(sample, settings.fpir or 0.0)
    id = collection.state.calibration_id
    if settings.json_:
        print_json({**asdict(found), "calibration_id": id, "warnings": warnings})
    else:
        console.show_threshold(Terminal(), found, id, warnings)
    return 0
