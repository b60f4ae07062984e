"""Settings of `surematch train`: the flags, the TOML file, the record in `training.json` and the help text at once.

What depends on the encoder (epochs, batch size, learning rates) is None until `Recipe.resolve` fills it in, so that a
figure given by the user is never mistaken for a default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.settings import Settings

Kind = Literal["static", "transformer"]
"""A static encoder looks token vectors up; a transformer computes them. They want very different learning rates."""


class TrainSettings(Settings):
    """Learn an encoder from labelled rows: rows of one label become neighbours, whatever their words.

    The result is a folder that sentence-transformers loads, with its class weights, its training record and the list
    of rows it saw. A share of the rows is held out, so that probabilities can be calibrated on texts it never saw.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch train")

    data: CliPositionalArg[list[Path]] = Field(description="Labelled rows: CSV, TSV, JSONL or Parquet files.")
    out: Path = Field(description="Folder the trained encoder is written to.")
    text: str = Field(default="text", description="Column that holds the text.")
    label: str = Field(default="label", description="Column that holds the label.")
    encoder: str = Field(
        default="static",
        description="Where training starts: 'static' (seconds on a CPU), 'minilm' (better, minutes), the folder of any "
        "sentence-transformers model, or its hub id.",
    )
    loss: Literal["am-softmax"] = Field(
        default="am-softmax", description="Training objective; am-softmax: cross entropy of s(cos - m) against s cos."
    )
    scale: Annotated[float, Gt(0)] = Field(default=30.0, description="Scale s of the cosines, the inverse temperature.")
    margin: Annotated[float, Ge(0), Lt(2)] = Field(
        default=0.35,
        description="Margin m: how much closer, in cosine, a text must be to its own class than to any other.",
    )
    epochs: Annotated[float, Gt(0)] | None = Field(
        default=None, description="Passes over the rows. Default: 5 for static encoders, 1 for transformers."
    )
    batch_size: Annotated[int, Ge(2)] | None = Field(
        default=None, description="Rows a step. Default: 64 for static encoders, 32 for transformers."
    )
    learning_rate: Annotated[float, Gt(0)] | None = Field(
        default=None,
        description="Peak learning rate of the encoder. Default: 1e-2 for static encoders, 5e-5 for transformers.",
    )
    head_learning_rate: Annotated[float, Gt(0)] | None = Field(
        default=None, description="Peak learning rate of the class weights. Default: 1e-2."
    )
    warmup: Annotated[float, Ge(0), Lt(1)] = Field(
        default=0.1,
        description="Share of the steps over which learning rates rise to their peak before they fall to zero.",
    )
    held_out: Annotated[float, Ge(0), Le(0.5)] = Field(
        default=0.15,
        description="Share of each class kept from training, for calibration. Two rows a class always train.",
    )
    seed: Annotated[int, Ge(0)] = Field(default=0, description="Seed of the split, the shuffling and dropout.")
    overwrite: bool = Field(default=False, description="Replace --out if it holds an encoder that surematch trained.")
    json_: bool = Field(default=False, alias="json", description="Print one JSON object on standard output.")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The figures a run really uses."""

    epochs: float
    batch_size: int
    learning_rate: float
    head_learning_rate: float

    @classmethod
    def resolve(cls, settings: TrainSettings, kind: Kind) -> Recipe:
        """The user's figures where given, else the measured defaults for this kind of encoder."""
        default = asdict(_DEFAULTS[kind])
        given = {name: getattr(settings, name) for name in default}
        return cls(**{name: default[name] if value is None else value for name, value in given.items()})


_DEFAULTS: dict[Kind, Recipe] = {
    "static": Recipe(epochs=5, batch_size=64, learning_rate=1e-2, head_learning_rate=1e-2),
    "transformer": Recipe(epochs=1, batch_size=32, learning_rate=5e-5, head_learning_rate=1e-2),
}


class DemoSettings(Settings):
    """See it work: train on smart-home sentences, index them, calibrate, answer three questions, then serve.

    A second run reuses what the first one made.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch demo")

    out: Path = Field(default=Path("demo"), description="Folder for the data, the encoder and the collection.")
    encoder: str = Field(
        default="static", description="Where training starts: 'static', 'minilm', a folder or a hub id."
    )
    seed: Annotated[int, Ge(0)] = Field(default=0, description="Seed of the sentences drawn and of the training.")
    serve: bool = Field(default=True, description="Serve the collection afterwards; --no-serve stops before.")
    port: Annotated[int, Ge(0), Le(65535)] = Field(default=8000, description="Port on 127.0.0.1 to serve at.")
