"""Runs that are killed, interrupted, resumed, refused, or end because the loss is no number or nothing gets better."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerControl

import training.learning.trainer
import training.pipeline
from index.errors import DataError, SettingsError
from index.verbs.cli import index
from tests.pictures import write_digits
from tests.training.conftest import FILLERS, TOPICS, Write, change_weights, sentences
from training.cli import train
from training.learning.interrupt import StopOnSignal

RECIPE = ("--batch-size", "16", "--learning-rate", "0.1", "--checkpoint-steps", "3")
WEIGHTS = ("model.safetensors", "head.safetensors")


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of one layer, with dropout: training it depends on the state of the random generators."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("transformer")
    words = ["[PAD]", "[UNK]", *FILLERS, *(word for topic in TOPICS.values() for word in topic)]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **shape)).save_pretrained(folder / "bert")
    model = SentenceTransformer(modules=[Transformer(str(folder / "bert"), max_seq_length=16), Pooling(32)])
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process a real SIGINT when training ends the given step."""
    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the signal arrives between two instructions of Python
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)


def weights_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in WEIGHTS]


@pytest.mark.parametrize("name", ["model [v2]", "model[/del]"])
def test_what_is_said_next_can_be_pasted(
    name: str, tiny_encoder: Path, tmp_path: Path, write_csv: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_csv(sentences(8)), tmp_path / name
    assert train([str(data), "--encoder", str(tiny_encoder), *RECIPE, "--epochs", "1", "--out", str(out)]) == 0
    said = "".join(capsys.readouterr().out.split("\n"))
    words = shlex.split(said.partition("Next: ")[2])
    assert words[:4] == ["surematch", "index", str(out), str(data)]


def test_what_is_said_next_works_after_faulty_pictures_were_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_digits(tmp_path / "digits", range(4), range(8))
    (data / "d0" / "cut.png").write_bytes((data / "d0" / "001.png").read_bytes()[:-60])
    command = [str(data), "--encoder", "image", "--image-size", "16", "--epochs", "1", "--out", str(tmp_path / "m")]
    assert train([*command, "--skip-faulty"]) == 0
    verb, *words = shlex.split("".join(capsys.readouterr().out.split("\n")).partition("Next: surematch ")[2])
    monkeypatch.chdir(tmp_path)
    assert (verb, index(words)) == ("index", 0)
    assert (tmp_path / "C" / "collection.json").is_file()


def test_what_is_said_next_names_the_texts_to_repair_first(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--encoder", str(tiny_encoder), *RECIPE, "--epochs", "1", "--skip-faulty"]
    whole, torn = write_csv(sentences(8)), write_csv([*sentences(8), ("", "card")], "torn.csv")
    for data, first in ((whole, False), (torn, True)):
        assert train([str(data), *command, "--out", str(tmp_path / data.stem)]) == 0
        said = capsys.readouterr().out
        assert ("fill or delete the rows without a text or a label" in " ".join(said.split())) == first
        assert "--skip-faulty" not in said, "texts are not skipped when they are indexed"


def test_what_is_said_next_names_no_columns_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_digits(tmp_path / "digits", range(3), range(4)), tmp_path / "model"
    assert train([str(data), "--encoder", "image", "--image-size", "16", "--epochs", "1", "--out", str(out)]) == 0
    said = "".join(capsys.readouterr().out.split("\n"))
    words = shlex.split(said.partition("Next: ")[2])
    assert words == ["surematch", "index", str(out), str(data), "--out", "C"]


@pytest.mark.parametrize("flags", [(), ("--deterministic",)], ids=["default", "deterministic"])
def test_a_killed_run_resumes_to_the_very_same_weights(
    flags: tuple[str, ...], tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    data = write_csv(sentences(30))
    command = [str(data), "--encoder", str(tiny_encoder), *RECIPE, "--epochs", "20", "--loss", "adaface", *flags]
    assert train([*command, "--out", str(tmp_path / "undisturbed")]) == 0
    out = tmp_path / "killed"
    program = "import sys; from training.cli import train; sys.exit(train(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", program, *command, "--out", str(out)], stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "killed.run" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("checkpoint-??/objective.safetensors")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    (checkpoints / "checkpoint-9999").mkdir()  # a checkpoint the process died in: not whole
    assert train([*command, "--out", str(out), "--resume"]) == 0
    assert weights_of(out) == weights_of(tmp_path / "undisturbed")
    assert not (tmp_path / "killed.run").exists()


def test_a_run_does_not_go_on_from_another_encoder_at_the_same_path(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    command = [str(write_csv(sentences(20))), "--encoder", str(encoder), *RECIPE, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert train(command) == 130
    change_weights(encoder)
    with pytest.raises(SettingsError, match="encoder_fingerprint was"):
        train([*command, "--resume"])


def test_a_run_does_not_go_on_with_other_rows_held_out(
    tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(write_csv(sentences(20))), *RECIPE, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert train(command) == 130
    record = tmp_path / "out.run" / "run.json"
    before = json.loads(record.read_text())
    del before["split"]  # of an earlier version, which may have trained on what would be held out now
    record.write_text(json.dumps(before))
    with pytest.raises(SettingsError, match="split was None"):
        train([*command, "--resume"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--loss", "sphereface", "--accumulate", "2"),
        ("--loss", "exact", "--margin-warmup", "0.5", "--scale-start", "5", "--per-class", "4"),
        ("--loss", "curricularface", "--unseen-classes", "0.5", "--patience", "20"),
        ("--loss", "am-softmax", "--bf16"),
        ("--loss", "triplet"),
    ],
    ids=lambda flags: flags[1],
)
def test_an_interrupted_run_resumes_to_the_very_same_weights(
    flags: tuple[str, ...],
    tiny_encoder: Path,
    tiny_transformer: Path,
    tmp_path: Path,
    write_csv: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = tiny_transformer if flags[1] in ("am-softmax", "triplet") else tiny_encoder
    command = [str(write_csv(sentences(20))), "--encoder", str(encoder), *RECIPE, "--epochs", "5", *flags]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert train([*command, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert train([*command, "--out", str(out)]) == 130
    assert "add --resume" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    assert {path.name for path in (tmp_path / "out.run" / "checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-5"}
    assert train([*command, "--out", str(out), "--resume"]) == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    if (whole / "head.safetensors").exists():
        assert weights_of(out) == weights_of(whole)
    curves = [json.loads((folder / "training.json").read_text())["metrics"]["loss"] for folder in (whole, out)]
    assert [p for p in curves[0] if "unseen_map_at_r" in p] == [p for p in curves[1] if "unseen_map_at_r" in p]


@pytest.mark.parametrize(("processes", "saves"), [(1, True), (2, False)])
def test_one_of_several_processes_leaves_no_checkpoint_that_nothing_can_go_on_from(processes: int, saves: bool) -> None:
    control = TrainerControl()
    with StopOnSignal(Console(quiet=True)) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        stop.on_step_end(SimpleNamespace(world_size=processes), None, control)
    assert control.should_training_stop
    assert control.should_save == saves


def in_terminal(out: Path, command: list[str], output: Path | None) -> tuple[int, int]:
    """A training in a session with a terminal of its own, once it has a checkpoint: its pid and the terminal."""
    program = "import sys; from training.cli import train; sys.exit(train(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child, terminal = pty.fork()
    if child == 0:
        if output is not None:
            for number in (1, 2):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.execve(sys.executable, [sys.executable, "-c", program, *command, "--out", str(out)], environment)
    os.set_blocking(terminal, False)
    checkpoints = Path(f"{out}.run") / "checkpoints"
    while not any(checkpoints.glob("checkpoint-??/objective.safetensors")):
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        time.sleep(0.005)
    return child, terminal


@pytest.mark.parametrize("said", ["to end", "to stay"])
def test_a_closed_terminal_stops_a_training_with_a_checkpoint_but_under_nohup(
    said: str, tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    out, stays = tmp_path / "out", said == "to stay"
    command = [str(write_csv(sentences(30))), "--encoder", str(tiny_encoder), *RECIPE, "--epochs", "60"]
    command += ["--checkpoint-steps", "50"]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if stays else signal.SIG_DFL)
    try:
        child, terminal = in_terminal(out, command, tmp_path / "nohup.out" if stays else None)
    finally:
        signal.signal(signal.SIGHUP, before)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if stays else 130)
    if stays:
        assert out.is_dir()
        return
    assert not out.exists()
    steps = [int(path.name.partition("-")[2]) for path in (tmp_path / "out.run" / "checkpoints").iterdir()]
    assert any(step % 50 for step in steps)  # made when the terminal closed; the others are of every fiftieth step
    assert train([*command, "--out", str(out), "--resume"]) == 0


def test_checkpointed_gradients_train_the_same_encoder_in_deterministic_mode(
    tiny_transformer: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_csv(sentences(10)))
    command = [data, "--encoder", str(tiny_transformer), *RECIPE, "--loss", "am-softmax"]
    modes, recomputed = [], []
    original = training.learning.trainer.EmbeddingTrainer.compute_loss

    def compute_loss(self, model, *args, **kwargs):
        modes.append(torch.are_deterministic_algorithms_enabled())
        recomputed.append(model[0].auto_model.is_activation_checkpointing)
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(training.learning.trainer.EmbeddingTrainer, "compute_loss", compute_loss)
    assert train([*command, "--out", str(tmp_path / "plain")]) == 0
    assert not any(modes + recomputed)
    modes.clear(), recomputed.clear()
    assert train([*command, "--out", str(tmp_path / "saving"), "--gradient-checkpointing", "--deterministic"]) == 0
    assert all(modes + recomputed)
    assert not torch.are_deterministic_algorithms_enabled()
    for name in WEIGHTS:
        plain, saving = (load_file(tmp_path / folder / name) for folder in ("plain", "saving"))
        torch.testing.assert_close(saving, plain)


def test_tensorboard_gets_the_curve(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    data = str(write_csv(sentences(10)))
    command = [data, "--encoder", str(tiny_encoder), *RECIPE, "--epochs", "10", "--out", str(tmp_path / "m")]
    assert train([*command, "--log-to", "tensorboard"]) == 0
    (events,) = (tmp_path / "m.tensorboard").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_a_logger_that_is_not_installed_is_named(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    command = [str(write_csv(sentences(10))), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m")]
    with pytest.raises(SettingsError, match=r"--log-to mlflow needs the package mlflow.*pip install mlflow"):
        train([*command, "--log-to", "mlflow"])
    with pytest.raises(SettingsError, match="static encoder has no activations"):
        train([*command, "--gradient-checkpointing"])
    assert not (tmp_path / "m").exists()


def test_a_resume_with_other_data_or_settings_shows_what_differs(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sentences(20)
    command = [str(write_csv(rows)), "--encoder", str(tiny_encoder), *RECIPE, "--out", str(tmp_path / "m")]
    with pytest.raises(SettingsError, match=r"no interrupted run of .*Leave --resume out"):
        train([*command, "--resume"])
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train(command) == 130
    with pytest.raises(SettingsError, match=r"differently: margin was None, is 0\.1; seed was 0, is 3\. Continue with"):
        train([*command, "--resume", "--margin", "0.1", "--seed", "3"])
    write_csv(rows[1:])
    with pytest.raises(SettingsError, match=r"differently: data was '[0-9a-f]{64}', is '[0-9a-f]{64}'"):
        train([*command, "--resume"])
    with pytest.raises(SettingsError, match=r"holds an interrupted run\. Continue it with --resume"):
        train(command)
    assert train([*command, "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "rows.csv"]


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(write_csv(sentences(20))), "--encoder", str(tiny_encoder), *RECIPE, "--out", str(tmp_path / "m")]
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        assert train(command) == 130
    (path,) = tmp_path.glob("*/run.json")
    record = json.loads(path.read_text())
    del record["composed_classes"], record["options"]
    path.write_text(json.dumps(record))
    with pytest.raises(SettingsError, match=r"differently: composed_classes was False, is True\. Continue with"):
        train([*command, "--resume", "--composed-classes"])
    assert train([*command, "--resume"]) == 0


def test_a_loss_that_is_no_number_names_the_batch(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sentences(20)
    data = write_csv(rows)
    original = training.learning.trainer.OBJECTIVES["am-softmax"].build.loss_of
    bad: list[int] = []

    def loss_of(self, vectors, labels, norms=None):
        bad.append(len(labels))
        return original(self, vectors * (float("nan") if len(bad) == 3 else 1.0), labels, norms)

    monkeypatch.setattr(training.learning.trainer.OBJECTIVES["am-softmax"].build, "loss_of", loss_of)
    with pytest.raises(DataError, match=r"became nan at step 3, in the batch of .*line \d+ \('") as caught:
        train(
            [str(data), "--encoder", str(tiny_encoder), *RECIPE, "--loss", "am-softmax", "--out", str(tmp_path / "m")]
        )
    message = str(caught.value)
    assert "and 11 more" in message
    line = int(message.split(" line ")[1].split()[0])
    assert rows[line - 2][0][:40] in message
    assert not (tmp_path / "m").exists()


def test_early_stopping_keeps_the_best_weights(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.3, 0.6, 0.5, 0.4, 0.9, 0.9, 0.9, 0.9])
    real = training.pipeline.retrieval
    seen: list[np.ndarray] = []

    def retrieval(vectors, classes, *gallery):
        result = real(vectors, classes, *gallery)
        if gallery or not seen:  # the held-out rows, or the start
            seen.append(vectors)
            return result
        seen.append(vectors)
        return replace(result, map_at_r=next(values))

    monkeypatch.setattr(training.pipeline, "retrieval", retrieval)
    flags = ("--unseen-classes", "0.5", "--patience", "2", "--evaluations", "1", "--epochs", "8", "--held-out", "0")
    data = write_csv(sentences(20))
    train([str(data), "--encoder", str(tiny_encoder), *RECIPE, "--out", str(tmp_path / "m"), *flags])
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    curve = [p["unseen_map_at_r"] for p in record["metrics"]["loss"] if "unseen_map_at_r" in p]
    assert curve == [0.3, 0.6, 0.5, 0.4]
    assert len(record["unseen"]["labels"]) == 2
    assert not set(record["unseen"]["labels"]) & set(record["labels"])
    # start, first, second evaluation, ..., the model that is kept; a GPU rounds as it likes
    np.testing.assert_allclose(seen[-1], seen[2], rtol=0, atol=1e-6)
    assert all(np.abs(seen[-1] - other).max() > 1e-3 for other in (*seen[:2], *seen[3:-1]))


def test_patience_without_unseen_classes_is_refused(tmp_path: Path, write_csv: Write) -> None:
    with pytest.raises(SettingsError, match=r"--unseen-classes 0\.1"):
        train([str(write_csv(sentences(5))), "--out", str(tmp_path / "m"), "--patience", "2"])


def test_too_few_classes_to_hold_two_out(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    rows = [row for row in sentences(5) if row[1] in ("card", "food", "travel")]
    with pytest.raises(DataError, match="there are 3 classes"):
        train([str(write_csv(rows)), "--out", str(tmp_path / "m"), "--unseen-classes", "0.3"])


def test_the_config_in_the_folder_makes_the_same_encoder(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    data = str(write_csv(sentences(10)))
    flags = ("--loss", "sub-center", "--options", "centers=2", "--seed", "4", "--margin", "0.3", "--deterministic")
    first, second = tmp_path / "first", tmp_path / "second"
    assert train([data, "--encoder", str(tiny_encoder), *RECIPE, *flags, "--out", str(first)]) == 0
    assert train([data, "--config", str(first / "training.toml"), "--out", str(second)]) == 0
    assert weights_of(first) == weights_of(second)
    assert json.loads((second / "training.json").read_text())["objective"]["centers"] == 2


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8), per_class=st.integers(2, 4), seed=st.integers(0, 99))
def test_per_class_batches_hold_groups_of_a_class_and_every_row(sizes: list[int], per_class: int, seed: int) -> None:
    from datasets import Dataset

    from training.learning.samplers import PerClassSampler

    labels = [code for code, size in enumerate(sizes) for _ in range(size)]
    sampler = PerClassSampler(Dataset.from_dict({"label": labels}), 8, False, seed=seed, per_class=per_class)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {at for batch in batches for at in batch} == set(range(len(labels)))
    for batch in batches:
        assert len(batch) <= 8
        groups = [{labels[at] for at in batch[i : i + per_class]} for i in range(0, len(batch), per_class)]
        assert all(len(group) == 1 for group in groups)
    assert batches == list(sampler)
    sampler.set_epoch(1)
    assert len(labels) < 6 or batches != list(sampler)
