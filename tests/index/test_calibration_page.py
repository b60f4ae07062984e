"""The report page: whole, fetched from nowhere, escaped, and its curves where scikit-learn has them."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from html import escape
from pathlib import Path

import numpy as np
import pytest

from index import metrics
from index.calibration.page import _MARGIN, _SIZE, Measured, page
from index.errors import CalibrationError, SettingsError
from index.verbs import cli
from tests.index.conftest import World


def sample(n: int = 600) -> Measured:
    random = np.random.default_rng(0)
    p, known = random.random(n), random.random(n) < 0.7
    return Measured(p, (random.random(n) < p) & known, known, np.ones(n))


def curve(svg: str) -> list[tuple[float, float]]:
    """The last line drawn, in units of the axes."""
    points = re.findall(r'<polyline points="([^"]*)"', svg)[-1]
    pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
    return [((x - _MARGIN) / _SIZE, 1 - (y - 10) / _SIZE) for x, y in pairs]


def test_the_curves_are_what_their_axes_say() -> None:
    from sklearn.metrics import roc_curve

    points = sample()
    html = page("title", points, {"ece": 0.1})
    reliability, _, risk, det = re.findall(r"<svg.*?</svg>", html)
    expected = metrics.reliability(points.probability, points.right)
    np.testing.assert_allclose(curve(reliability), [(r["probability"], r["frequency"]) for r in expected], atol=1e-3)
    answered, wrong = np.array(curve(risk))[-1]
    assert (answered, wrong) == pytest.approx((1, 1 - points.right.mean()), abs=1e-3)
    half = np.argsort(-points.probability)[: len(points.known) // 2]
    at = np.argmin(np.abs(np.array(curve(risk))[:, 0] - 0.5))
    assert curve(risk)[at][1] == pytest.approx(1 - points.right[half].mean(), abs=0.02)
    let_in, _, _ = roc_curve(points.known, points.probability, drop_intermediate=False)
    assert np.isin(np.round(np.array(curve(det))[:, 0], 3), np.round(let_in, 3)).mean() > 0.9
    assert curve(det)[-1] == pytest.approx((1, 1 - points.right[points.known].mean()), abs=1e-3)


def test_no_operating_point_lies_between_equal_probabilities() -> None:
    known = np.array([True, True, True, False, True, False])
    points = Measured(np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.2]), known, known, np.ones(6))
    det = re.findall(r"<svg.*?</svg>", page("title", points, {"ece": 0.1}))[-1]
    assert curve(det) == [pytest.approx(at, abs=1e-3) for at in [(0, 1), (0.5, 0.25), (0.5, 0), (1, 0)]]


def test_it_stands_alone_and_names_are_escaped() -> None:
    html = page("<b>&", sample(), {"ece": 0.1, "intervals": {"ece": [0.05, 0.2]}}, ["<script>alert(1)</script>"])
    assert "<script" not in html
    assert "http" not in html
    assert "0.0500 to 0.2000" in html
    for svg in re.findall(r"<svg.*?</svg>", html):
        ET.fromstring(svg)
    only_known = Measured(np.full(5, 0.5), np.ones(5, np.bool_), np.ones(5, np.bool_), np.ones(5))
    assert page("one kind", only_known, {}).count("<svg") == 4


def test_a_phone_shows_it_by_day_and_night(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: the page was not opened")
    from playwright.sync_api import sync_playwright

    sets = [{"coverage": 0.9, "measured": 0.91, "known": 0.92, "unknown": None, "size": 2.5}]
    (tmp_path / "page.html").write_text(page("title", sample(), {"ece": 0.1, "aurc": 0.1, "sets": sets}))
    paper = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            opened = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
            opened.goto((tmp_path / "page.html").as_uri())
            assert opened.evaluate("document.documentElement.scrollWidth") <= 390
            paper.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
            tick = opened.locator("svg text", has_text="0.75").nth(1).bounding_box()
            name = opened.locator("svg text", has_text="happened").bounding_box()
            assert name["x"] + name["width"] <= tick["x"]  # type: ignore[index]
        browser.close()
    assert paper[0] != paper[1]


def test_imitated_unknown_queries_are_called_so_and_not_taken_for_those_that_were_given(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, out = shutil.copytree(world.encoder, tmp_path / "encoder"), tmp_path / "c"
    np.save(encoder / "trained_rows.npy", np.zeros(1, np.uint64))
    fit, measured = tmp_path / "fit.html", tmp_path / "measured.html"
    asked = ["--calibrate", str(world.held), "--label", "label"]
    assert cli.index([str(encoder), str(world.items), "--out", str(out), *asked, "--report", str(fit)]) == 0
    assert re.search(
        r"Measured on \d+ known queries .* and \d+ class-removed queries, which imitate unknown", fit.read_text()
    )
    given = ["--unknown", str(world.test_unknown), "--label", "label"]
    assert cli.evaluate([str(out), str(world.test), *given, "--report", str(measured)]) == 0
    said = measured.read_text()
    assert "were imitated by hiding labels when the collection was calibrated" in said
    assert "`surematch index --unknown FILE`" in said
    assert "class-removed" not in said


def test_the_verbs_write_it(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fit, measured = tmp_path / "c", tmp_path / "fit.html", tmp_path / "measured.html"
    asked = ["--calibrate", str(world.held), "--unknown", str(world.held_unknown), "--label", "label", "--json"]
    assert cli.index([str(world.encoder), str(world.items), "--out", str(out), *asked, "--report", str(fit)]) == 0
    built = json.loads(capsys.readouterr().out)
    low, high = built["calibration"]["intervals"]["ece"]
    assert low <= built["calibration"]["ece"] <= high
    assert f"{low:.4f} to {high:.4f}" in fit.read_text()
    assert (
        f"known queries (queries given with --calibrate) and {built['calibration']['queries']['unknowns']}."
        in fit.read_text()
    )
    flags = ["--unknown", str(world.test_unknown), "--label", "label", "--json"]
    assert cli.evaluate([str(out), str(world.test), *flags, "--report", str(measured)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert f"{report['ece']:.4f}" in measured.read_text()
    assert f"{report['queries']['known']} known and" in measured.read_text()
    for figure in (report["recall@1"], report["recall@5"], report["fpir"], report["fnir"]):
        assert f">{figure:.4f}<" in measured.read_text()
    for promised in [*report["sets"], *report["sets_known_unknown"]]:
        said = escape(promised["reason"]) if "reason" in promised else f">{promised['measured']:.4f}<"
        assert said in measured.read_text()
    with pytest.raises(SettingsError, match="does not exist"):
        cli.evaluate([str(out), str(world.test), *flags, "--report", str(tmp_path / "none" / "x.html")])
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)  # whoever tests may be root, who writes everywhere
        with pytest.raises(SettingsError, match=r"x.html: cannot be written"):  # before the collection is looked for
            cli.evaluate([str(tmp_path / "none"), str(world.test), *flags, "--report", str(tmp_path / "x.html")])
    with pytest.raises(SettingsError, match="is a folder"):
        cli.evaluate([str(out), str(world.test), *flags, "--report", str(tmp_path)])


def test_without_probabilities_there_is_no_page(world: World, tmp_path: Path) -> None:
    out = tmp_path / "c"
    few = tmp_path / "few.csv"
    few.write_text("text,label\n" + "\n".join(world.items.read_text().splitlines()[1:6]))
    flags = ["--label", "label", "--report", str(tmp_path / "x.html")]
    with pytest.raises(CalibrationError, match="nothing to report"):
        cli.index([str(world.encoder), str(few), "--out", str(out), *flags])
    with pytest.raises(CalibrationError, match="no probabilities"):
        cli.evaluate([str(out), str(few), *flags])


def test_intervals_hold_the_true_value() -> None:
    inside = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        p, known = random.random(400), np.ones(400, np.bool_)
        known[:100] = False
        right = random.random(400) < p
        low, high = metrics.intervals(p, 1 - p, right, known, seed=seed)["brier"]
        inside.append(low <= 1 / 6 <= high)  # E p(1-p) of uniform p
    assert sum(inside) >= 34


def test_intervals_count_groups_and_leave_out_what_is_undefined() -> None:
    random = np.random.default_rng(5)
    p = random.random(200)
    right, known = random.random(200) < p, np.ones(200, np.bool_)
    alone = metrics.intervals(p, 1 - p, right, known)
    assert "auroc_known_unknown" not in alone
    tripled = metrics.intervals(
        *(np.tile(part, 3) for part in (p, 1 - p, right, known)), group=np.tile(np.arange(200), 3)
    )
    assert tripled["brier"] == pytest.approx(alone["brier"], abs=1e-12)
