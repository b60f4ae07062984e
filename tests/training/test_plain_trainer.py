"""The objectives in the script that docs/training.md shows: the library's own trainer, nothing of our pipeline."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from index.errors import EncoderError, SettingsError
from tests.training.conftest import Write, sentences
from training import distributed
from training.learning.checkpoints import ObjectiveCheckpoint
from training.objectives import OBJECTIVES, make_objective, objective_state

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
EXTRA = 'num_train_epochs=3, per_device_train_batch_size=16, report_to="none", disable_tqdm=True, use_cpu=True'


def snippet(name: str, **extra: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 12
    settings = ", ".join([EXTRA, *(f"{key}={value}" for key, value in extra.items())])
    return code.replace("am-softmax", name).replace(
        'TrainingArguments("run", ', f'TrainingArguments("run", {settings}, '
    )


@pytest.fixture
def here(tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_csv(sentences(12))
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", [name for name, entry in OBJECTIVES.items() if entry.shape == "labelled"])
def test_the_script_of_the_docs_trains_with_every_objective(name: str, here: Path) -> None:
    space: dict[str, Any] = {}
    exec(snippet(name, learning_rate="0.1"), space)
    loss, rows, model = space["loss"], space["rows"], space["model"]
    group = [g for g in space["trainer"].optimizer.param_groups if any(p is loss.head.weight for p in g["params"])]
    assert [len(g["params"]) for g in group] == [1]
    vectors = model.encode(rows["text"][:], convert_to_tensor=True)
    assert (loss.cosines(vectors).argmax(1) == torch.tensor(rows["label"][:])).float().mean() > 0.9


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["am-softmax", "adaface"])
def test_a_checkpoint_of_the_plain_trainer_brings_the_class_weights_back(name: str, here: Path) -> None:
    whole: dict[str, Any] = {}
    exec(snippet(name, save_steps="4", learning_rate="0.1"), whole)
    assert (here / "run" / "checkpoint-4").is_dir()
    assert (here / "run" / "checkpoint-9").is_dir()
    again: dict[str, Any] = {}
    code = snippet(name, save_steps="4", learning_rate="0.1")
    exec(code.replace("trainer.train()", 'trainer.train(resume_from_checkpoint="run/checkpoint-4")'), again)
    expected = objective_state(whole["loss"])
    assert expected.keys() == objective_state(again["loss"]).keys()
    for key, value in objective_state(again["loss"]).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["adaface", "adacos", "curricularface", "magface", "sphereface"])
def test_what_follows_the_training_does_not_follow_rows_that_are_only_measured(name: str, here: Path) -> None:
    learned = []
    for measured in (False, True):
        space: dict[str, Any] = {}
        code = snippet(name, learning_rate="0.1", eval_strategy="'steps'" if measured else "'no'", eval_steps="2")
        given = "train_dataset=rows, eval_dataset=rows"
        assert "train_dataset=rows" in code
        exec(code.replace("train_dataset=rows", given if measured else "train_dataset=rows"), space)
        learned.append(objective_state(space["loss"]))
    for key, value in learned[0].items():
        assert torch.equal(value, learned[1][key]), key


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_checkpoint_in_another_folder_is_continued_where_it_is_named(here: Path) -> None:
    def run(folder: str, rate: str, checkpoint: str = "", resume: str = "") -> Any:
        space: dict[str, Any] = {}
        code = snippet("am-softmax", save_steps="4", learning_rate=rate).replace('"run"', f'"{folder}"')
        code = code.replace("Checkpoint(loss)", f"Checkpoint(loss{checkpoint})")
        exec(code.replace("trainer.train()", f"trainer.train({resume})"), space)
        return space["loss"].head.weight

    first, resume = run("first", "0.1"), 'resume_from_checkpoint="first/checkpoint-4"'
    run("other", "0.2")
    with pytest.raises(EncoderError, match=r"of another run than the checkpoint that is resumed.* name it"):
        run("other", "0.1", resume=resume)
    with pytest.raises(EncoderError, match="another folder than output_dir, name it"):
        run("new", "0.1", resume=resume)
    for folder in ("other", "new"):
        assert torch.equal(run(folder, "0.1", ', "first/checkpoint-4"', resume), first)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["partial-fc", "exact-sparse"])
def test_checkpoints_of_class_weights_in_parts_are_refused_before_the_training(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(SettingsError, match=r'its part of the class weights.*save_strategy="no", or in one process'):
        exec(snippet(name, save_steps="4"), {})
    assert not list((here / "run").glob("checkpoint-*"))


def test_of_several_processes_one_writes_the_class_weights(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps = ObjectiveCheckpoint(make_objective("adaface", SentenceTransformer(str(tiny_encoder), device="cpu"), 3))
    (tmp_path / "checkpoint-5").mkdir()
    for rank, files in ((1, []), (0, ["objective.safetensors"])):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        keeps.on_save(SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=5), None)
        assert [path.name for path in (tmp_path / "checkpoint-5").iterdir()] == files


def test_a_checkpoint_of_another_loss_or_a_damaged_one_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    args, state = SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=5)
    (tmp_path / "checkpoint-5").mkdir()
    ObjectiveCheckpoint(make_objective("adaface", model, 3)).on_save(args, state, None)
    other = ObjectiveCheckpoint(make_objective("am-softmax", model, 3))
    with pytest.raises(EncoderError, match="of another loss: mean, std, steps differ"):
        other.on_train_begin(args, state, None)
    (tmp_path / "checkpoint-5" / "objective.safetensors").write_bytes(b"oops")
    with pytest.raises(EncoderError, match="cannot be read"):
        other.on_train_begin(args, state, None)
