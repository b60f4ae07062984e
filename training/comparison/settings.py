"""Settings of `surematch compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, Le
from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.verbs.settings import Settings
from training.config import Loss

ARTICLE = ["softmax", "am-softmax", "taylor", "sparsemax", "entmax"]


class CompareSettings(Settings):
    """Train several losses on the same rows, splits and seeds, and say which finds classes it has never seen.

    One table and one plot; what is finished is kept, so the same command continues a comparison that was stopped.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch compare", allow_inf_nan=False)

    data: CliPositionalArg[list[Path]] = Field(description="Labelled rows or pictures, as for surematch train.")
    out: Path = Field(description="Folder of the comparison: compare.json, compare.html and a report for every run.")
    losses: list[str] = Field(
        default=ARTICLE,
        description="Losses to compare, the first being what the others are measured against: softmax,am-softmax or, "
        "with options, am-softmax:scale=15:margin=0.2.",
    )
    seeds: Annotated[int, Ge(1)] = Field(
        default=3, description="Seeds; each draws its own classes and rows to leave out."
    )
    text: str = Field(default="text", description="Column that holds the text.")
    label: str = Field(default="label", description="Column that holds the label.")
    encoder: str = Field(default="static", description="Where every training starts, as for surematch train.")
    unseen_classes: Annotated[float, Gt(0), Le(0.5)] = Field(
        default=0.25, description="Share of the classes kept from training whole, to measure on."
    )
    epochs: Annotated[float, Gt(0)] | None = Field(default=None, description="Passes over the rows, of every loss.")
    batch_size: Annotated[int, Ge(2)] | None = Field(default=None, description="Rows a step, of every loss.")
    learning_rate: Annotated[float, Gt(0)] | None = Field(
        default=None, description="Peak learning rate of the encoder."
    )
    skip_faulty: bool = Field(default=False, description="Leave out rows that cannot be learned from.")
    recipe: Path | None = Field(
        default=None, description="TOML file with further settings of surematch train, for every loss."
    )
    keep_models: bool = Field(default=False, description="Keep every encoder, not only its report.")
    json_: bool = Field(default=False, alias="json", description="Print one JSON object on standard output.")

    @field_validator("losses", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Names between commas, spaces or both."""
        words = value if isinstance(value, list) else [value]
        return [name for word in words for name in str(word).split(",") if name]

    @field_validator("losses")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for loss in value:
            name, *options = loss.split(":")
            if name not in get_args(Loss):
                raise ValueError(f"there is no loss {name!r}; choose of {', '.join(get_args(Loss))}")
            if not all(key and number for key, _, number in (option.partition("=") for option in options)):
                raise ValueError(f"write the options of {name} as {name}:scale=15:margin=0.2")
        if len(set(value)) < max(2, len(value)):
            raise ValueError("name at least two losses, each once")
        return value
