"""report.html and README.md of a model folder: true to the figures, safe with hostile texts, without a network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.training.conftest import TOPICS, sentences
from training.cli import train
from training.runs.folder import EVALUATION, REPORT

HOSTILE = "</title></bdi><script>alert('card')</script><img src=x onerror=alert(1)>"
ELEMENTS_OF_OURS = {"script", "img", "iframe", "object", "embed", "form", "base", "audio", "video", "source", "use"}


@pytest.fixture(scope="module")
def model(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on four topics, two of them never seen, with hostile texts, labels and a hostile folder name."""
    folder = tmp_path_factory.mktemp("report")
    rows = [(f"{text} {HOSTILE}" if at % 7 == 0 else text, label) for at, (text, label) in enumerate(sentences(30))]
    rows = [(text, f"{label}{HOSTILE}" if label == "food" else label) for text, label in rows]
    rows.append((rows[1][0], rows[1][1]))
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    out = folder / "a<b>&model"
    flags = ("--epochs", "10", "--unseen-classes", "0.5", "--margin", "0.1", "--loss", "am-softmax")
    command = [str(folder / "rows.jsonl"), "--encoder", str(tiny_encoder), "--out", str(out), "--batch-size", "16"]
    assert train([*command, *flags]) == 0
    return out


class Elements(HTMLParser):
    """Every element and attribute of a page, and its visible words."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_runs_nothing_and_fetches_nothing(model: Path) -> None:
    content = (model / REPORT).read_text(encoding="utf-8")
    page = Elements(content)
    assert not ELEMENTS_OF_OURS & {tag for tag, _ in page.found}
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert not [name for _, attributes in page.found for name in attributes if name in ("src", "href", "srcset")]
    assert "url(" not in content
    assert "@import" not in content
    assert "default-src 'none'" in content
    assert HOSTILE in page.words  # shown as words, not lost


def test_a_browser_shows_it_without_running_a_text(model: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: the report was not opened")
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        paper = []
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
            page.on("console", lambda message: faults.append(message.text))
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.on("request", lambda request: faults.append(request.url) if "report.html" not in request.url else None)
            page.goto((model / REPORT).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.locator("svg").count() >= 4
            for cell in page.locator("td:first-child:visible").all():  # names are read in words, not in letters
                assert cell.bounding_box()["width"] >= 120  # type: ignore[index]
            assert page.locator(".chart").first.bounding_box()["width"] >= 400  # type: ignore[index]
            paper.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.close()
    assert faults == []
    assert paper[0] != paper[1]


def test_the_page_shows_what_was_measured(model: Path) -> None:
    evaluation = json.loads((model / EVALUATION).read_text())
    record = json.loads((model / "training.json").read_text())
    words = Elements((model / REPORT).read_text(encoding="utf-8")).words
    for kind in ("seen", "unseen"):
        for name in ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "r_precision", "nearest_class_mean"):
            bounds = evaluation[kind][name]["interval"]
            assert (bounds is None) == (kind == "unseen")  # two classes say nothing of how much others differ
            if bounds is not None:
                assert bounds[0] <= evaluation[kind][name]["value"] <= bounds[1]
            assert f"{evaluation[kind][name]['value']:.3f}" in words
    assert evaluation["seen"]["recall_at_1"]["value"] == pytest.approx(record["metrics"]["held_out"]["recall_at_1"])
    assert evaluation["unseen"]["map_at_r"]["value"] == pytest.approx(record["metrics"]["unseen"]["map_at_r"])
    assert sum(row["queries"] for row in evaluation["classes"]) == record["held_out"]["rows"]
    assert {row["label"] for row in evaluation["classes"]} == set(record["labels"])
    pairs = evaluation["unseen"]["verification"]
    n = record["unseen"]["rows"]
    assert pairs["genuine_pairs"] + pairs["impostor_pairs"] == n * (n - 1) // 2
    assert record["command"] in words
    assert "rows that did not train" in words
    assert any("unseen_map_at_r" in point for point in record["metrics"]["loss"])
    for package, version in record["versions"].items():
        assert package in words
        assert version in words


def test_a_rate_without_enough_pairs_is_not_shown_as_a_figure(model: Path) -> None:
    rates = json.loads((model / EVALUATION).read_text())["seen"]["verification"]["tar_at_far"]
    assert [rate["supported"] for rate in rates] == [False, False, False]  # 8 rows of two classes: a dozen pairs
    assert f"needs {rates[0]['pairs_needed']:,} pairs" in (model / REPORT).read_text()
    page = (model / REPORT).read_text()
    assert '<i class="two"></i>classes never seen' in page
    assert '<i class="one"></i>held-out rows' not in page  # nor is there a curve of it


def test_the_command_makes_the_same_encoder_again(model: Path, tmp_path: Path) -> None:
    import shlex

    words = shlex.split(json.loads((model / "training.json").read_text())["command"])
    assert words[:2] == ["surematch", "train"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert train(words[2:]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_the_card_is_one_the_hub_reads_and_its_figures_are_ours(model: Path) -> None:
    evaluation = json.loads((model / EVALUATION).read_text())
    card = ModelCard.load(model / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
    results = {(result.dataset_type, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results[("held-out", "recall_at_1")] == round(evaluation["seen"]["recall_at_1"]["value"], 4)
    assert results[("unseen-classes", "map_at_r")] == round(evaluation["unseen"]["map_at_r"]["value"], 4)
    assert "<script" not in card.text.split("```sh")[0]
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    compile(code, "README.md", "exec")


def test_without_held_out_rows_the_report_says_that_nothing_was_measured(tiny_encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in sentences(5)), encoding="utf-8")
    command = [str(data), "--encoder", str(tiny_encoder), "--epochs", "1", "--held-out", "0"]
    assert train([*command, "--out", str(tmp_path / "m")]) == 0
    report = (tmp_path / "m" / REPORT).read_text()
    assert "nothing was measured" in report
    assert "rows it was trained on" in report
    assert "did not train" not in report
    assert "Coloured" not in report
    assert "nothing was measured" in (tmp_path / "m" / "README.md").read_text()


def test_the_counts_are_those_of_what_trained(model: Path, tiny_encoder: Path, tmp_path: Path, capsys) -> None:
    from training.reports.report import render_report

    record, evaluation = (json.loads((model / name).read_text()) for name in ("training.json", EVALUATION))
    rows = record["data"]["rows"] - record["held_out"]["rows"]
    assert f"{rows:,} rows in 2 classes" in Elements((model / REPORT).read_text(encoding="utf-8")).words
    assert f"{rows:,} rows in 2 classes" in (model / "README.md").read_text(encoding="utf-8")
    assert "hardest of 25 classes" in render_report(record, {**evaluation, "classes": evaluation["classes"][:1] * 25})
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in sentences(70)), encoding="utf-8")
    flags = ["--encoder", str(tiny_encoder), "--batch-size", "4", "--epochs", "1", "--out", str(tmp_path / "m")]
    assert train([str(data), *flags]) == 0
    assert "1 epoch," in capsys.readouterr().err
    assert "the scale moves while it learns" in (tmp_path / "m" / REPORT).read_text(encoding="utf-8")


def test_classes_of_two_rows_are_not_told_to_hold_out_what_they_cannot(tiny_encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in sentences(2)), encoding="utf-8")
    assert train([str(data), "--encoder", str(tiny_encoder), "--epochs", "1", "--out", str(tmp_path / "m")]) == 0
    report = (tmp_path / "m" / REPORT).read_text(encoding="utf-8")
    assert "No class has three different rows" in report
    assert "--unseen-classes 0.2" in report
    assert "Train with --held-out" not in report


@pytest.mark.parametrize(
    ("rows", "promised", "again"),
    [
        pytest.param(2, "Too few rows were kept", False, id="not even whole classes would do"),
        pytest.param(30, "Too few rows were kept", True, id="whole classes would do"),
        pytest.param(40, "it answers with rough probabilities, of the best hit alone", False, id="rough"),
        pytest.param(90, "it answers with probabilities", False, id="enough"),
    ],
)
def test_rows_that_are_too_few_to_calibrate_with_are_told(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, promised: str, again: bool
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in sentences(rows)), encoding="utf-8")
    assert train([str(data), "--encoder", str(tiny_encoder), "--epochs", "1", "--out", str(tmp_path / "m")]) == 0
    card = " ".join((tmp_path / "m" / "README.md").read_text(encoding="utf-8").split())
    assert promised in card
    assert ("--calibrate" in card) is (rows < 90)
    said = " ".join(capsys.readouterr().out.split())
    assert ("give index 50 labelled queries" in said) is (rows <= 30)
    assert ("train with --unseen-classes 0.2, or give index" in said) is again


def test_shares_that_give_no_row_are_told_from_classes_that_have_none(tiny_encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in sentences(10)), encoding="utf-8")
    flags = ["--encoder", str(tiny_encoder), "--epochs", "1", "--held-out", "0.01", "--out", str(tmp_path / "m")]
    assert train([str(data), *flags]) == 0
    report = (tmp_path / "m" / REPORT).read_text(encoding="utf-8")
    assert "--held-out 0.01 gives no row of so few" in report
    assert "Train with a larger share and --unseen-classes 0.2" in report


def test_the_map_is_the_plane_of_most_variance(model: Path) -> None:
    content = json.loads((model / EVALUATION).read_text())["map"]
    from sentence_transformers import SentenceTransformer
    from sklearn.decomposition import PCA

    vectors = SentenceTransformer(str(model), device="cpu").encode([point["text"] for point in content["points"]])
    pca = PCA(2).fit(vectors)
    assert content["explained"] == pytest.approx(pca.explained_variance_ratio_.tolist(), abs=1e-3)
    places = np.array([[point["x"], point["y"]] for point in content["points"]])
    np.testing.assert_allclose(np.abs(places), np.abs(pca.transform(vectors)), atol=1e-2)
    assert {point["label"].removesuffix(HOSTILE) for point in content["points"]} == set(TOPICS)


def test_a_sample_of_rows_is_called_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.measures.assessment
    from training.reports.report import render_report

    monkeypatch.setattr(training.measures.assessment, "PAIRED", 20)
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = training.measures.assessment.Embedded(["t"] * 50, vectors, np.arange(50) % 2, ["a", "b"])
    ranking = training.measures.retrieval.rank(vectors, rows.classes, vectors, rows.classes)
    evaluation = training.measures.assessment.assess(rows, rows, ranking, None, np.array([25, 25]))
    assert evaluation["seen"]["verification"]["rows"] == 20
    record = json.loads((model / "training.json").read_text())
    assert "20 <small>drawn of 50</small>" in render_report(record, evaluation)
