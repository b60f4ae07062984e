"""Settings of `surematch train`: the flags, the TOML file, the record in `training.json` and the help text at once.

What depends on the encoder (epochs, batch size, learning rates) is None until `Recipe.resolve` fills it in, so that a
figure given by the user is never mistaken for a default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.verbs.settings import Settings

Kind = Literal["static", "transformer", "image", "frozen"]
"""A static encoder looks token vectors up, a transformer computes them, an image network starts from nothing. They want
very different learning rates."""

Loss = Literal[
    "am-softmax",
    "arcface",
    "sphereface",
    "combined",
    "sub-center",
    "adaface",
    "magface",
    "curricularface",
    "adacos",
    "normalised-softmax",
    "softmax",
    "taylor",
    "entmax",
    "sparsemax",
    "sparse-softmax",
    "smooth-accuracy",
    "exact",
    "partial-fc",
    "exact-sparse",
    "multiple-negatives-ranking",
    "batch-all-triplet",
    "batch-hard-triplet",
    "batch-semi-hard-triplet",
    "batch-hard-soft-margin-triplet",
    "contrastive",
    "online-contrastive",
    "cosent",
    "triplet",
]
"""Names in `training.objectives.OBJECTIVES`, listed here too because flags are read before torch is loaded."""

PAIRING = get_args(Loss)[get_args(Loss).index("multiple-negatives-ranking") :]
"""The losses without class weights, which compare the rows of a batch."""


Seed = Annotated[int, Ge(0), Lt(2**32)]
"""Of every generator that a training draws from; numpy's take no larger one."""


class TrainSettings(Settings):
    """Learn an encoder from labelled rows: rows of one label become neighbours, whatever their words.

    The result is a folder that sentence-transformers loads, with its class weights, its training record and the list
    of rows it saw. A share of the rows is held out, so that probabilities can be calibrated on texts it never saw.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch train", allow_inf_nan=False)

    data: CliPositionalArg[list[Path]] = Field(
        description="Labelled rows: CSV, TSV, JSONL or Parquet files; folders of Hugging Face data sets or their names "
        "on the Hub (OWNER/NAME), with :SPLIT after them if not train; for pictures a folder with one folder an "
        "identity, a zip of such folders, or a table of paths and labels."
    )
    out: Path = Field(description="Folder the trained encoder is written to.")
    text: str = Field(default="text", description="Column that holds the text.")
    label: str = Field(default="label", description="Column that holds the label.")
    pair_text: str | None = Field(
        default=None,
        description="Column of a second text: rows are then pairs, --label says whether both texts are of one class "
        "(1 or 0), and texts joined by pairs become classes.",
    )
    skip_faulty: bool = Field(
        default=False,
        description="Leave out what cannot be learned from (empty texts and labels, texts that carry two labels, "
        "classes of one row) after naming each.",
    )
    encoder: str = Field(
        default="static",
        description="Where training starts: 'static' (seconds on a CPU), 'minilm' (better, minutes), the folder of any "
        "sentence-transformers model, or its hub id; for pictures 'image' (a compact network from scratch), "
        "'timm:NAME', or the folder of a trained one; 'sface', or another's ONNX file: it stays as it is, and a "
        "projection of its vectors is learned.",
    )
    image_size: Annotated[int, Ge(16), Le(512)] | None = Field(
        default=None, description="Edge of the square that pictures are fitted into, in pixels. Default: 64."
    )
    augment: Literal["faces", "characters", "none"] = Field(
        default="faces",
        description="Random changes to pictures: faces (mirrored, cropped, colour, blur, cutout; photographs too), "
        "characters (turned and slanted, never mirrored), none.",
    )
    turned_classes: bool = Field(
        default=False,
        description="Pictures turned by 90, 180 and 270 degrees, and the mirror images of all four, train as further "
        "classes, eight times as many in all. For characters and symbols of which there are few: more classes to tell "
        "apart make a better encoder. Needs an --augment that does not mirror.",
    )
    composed_classes: bool = Field(
        default=False,
        description="The upper half of a picture of one class above the lower half of one of another trains as a "
        "further class, C x C in all. For faces, cropped alike, of which there are few dozen people.",
    )
    loss: Loss | None = Field(
        default=None,
        description="Training objective, with class weights: am-softmax ... exact; without, as sentence-transformers "
        "has them: multiple-negatives-ranking ... triplet. Default: adacos for static encoders, normalised-softmax "
        "for transformers, am-softmax for pictures and projections.",
    )
    scale: Annotated[float, Gt(0)] | None = Field(
        default=None,
        description="Scale s of the cosines, the inverse temperature. Default: the loss's own; 10 for transformers and "
        "projections with their default loss.",
    )
    margin: Annotated[float, Ge(0)] | None = Field(
        default=None,
        description="Margin m of the loss; am-softmax: how much closer, in cosine, a text must be to its own class "
        "than to any other. Default: the loss's own.",
    )
    options: dict[str, float] = Field(
        default={}, description="Further options of the loss, such as --options alpha=2 or centers=5."
    )
    margin_warmup: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.0, description="Share of the steps over which the margin rises from 0."
    )
    scale_start: Annotated[float, Gt(0)] | None = Field(
        default=None, description="Scale at the first step, moving linearly to the full one. Default: constant."
    )
    lead: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.5,
        description="Share of the steps that am-softmax leads a loss made for fine-tuning (sparse-softmax, "
        "smooth-accuracy, exact).",
    )
    start_share: Annotated[float, Ge(0), Lt(1)] | None = Field(
        default=None,
        description="Share of the weights the encoder started with that is mixed into the trained ones at the end, for "
        "an encoder that knew much before. Not for 'image', which starts from nothing. Default: 0.3 for transformers, "
        "0.5 for projections, else 0.",
    )
    epochs: Annotated[float, Gt(0)] | None = Field(
        default=None,
        description="Passes over the rows. Default: 5 for static encoders, 1 for transformers, 30 for pictures, 20 for "
        "projections.",
    )
    batch_size: Annotated[int, Ge(2)] | None = Field(
        default=None,
        description="Rows a step. Default: 64 for static encoders and projections, 32 for transformers and pictures.",
    )
    learning_rate: Annotated[float, Gt(0)] | None = Field(
        default=None,
        description="Peak learning rate of the encoder. Default: 1e-2 for static encoders, 1e-4 for transformers, 2e-3 "
        "for pictures, 1e-3 for projections.",
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
        description="Share of each class kept from training, for calibration; small classes give it together. Two rows "
        "a class always train.",
    )
    unseen_classes: Annotated[float, Ge(0), Le(0.5)] = Field(
        default=0.0,
        description="Share of the classes kept from training whole, to measure retrieval on classes never seen.",
    )
    patience: Annotated[int, Ge(1)] | None = Field(
        default=None,
        description="Stop after so many evaluations on the unseen classes without a better MAP@R, and keep the best "
        "weights. Default: train to the end.",
    )
    evaluations: Annotated[int, Ge(1)] = Field(
        default=2,
        description="Evaluations an epoch on the classes never seen: with --patience, and of static encoders always.",
    )
    per_class: Annotated[int, Ge(2)] | None = Field(
        default=None,
        description="Rows of a class in every batch it is in. Default: rows are drawn as they come; 4 for losses that "
        "compare the rows of a batch.",
    )
    balance: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.0,
        description="How much more often rows of small classes are drawn: 0 as they are, 0.5 by the square root of the "
        "class size, 1 every class equally often.",
    )
    accumulate: Annotated[int, Ge(1)] = Field(
        default=1, description="Batches whose gradients are added up before a step."
    )
    bf16: bool = Field(default=False, description="Compute in bfloat16; class weights and losses stay in float32.")
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute a transformer's activations again in the backward pass: less memory, slower, same result.",
    )
    deterministic: bool = Field(
        default=False,
        description="Use deterministic algorithms alone, so that a run repeats bit for bit on a GPU, too.",
    )
    log_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default=[],
        description="Loggers that get the curve as well; tensorboard writes to the folder OUT.tensorboard.",
    )
    checkpoint_steps: Annotated[int, Ge(0)] = Field(
        default=200, description="Steps between checkpoints, from which --resume continues; 0: none."
    )
    resume: bool = Field(
        default=False, description="Continue the interrupted run of --out, with the same data and settings."
    )
    seed: Seed = Field(default=0, description="Seed of the split, the shuffling and dropout.")
    overwrite: bool = Field(
        default=False,
        description="Replace --out if it holds an encoder that surematch trained, and drop an interrupted run.",
    )
    json_: bool = Field(default=False, alias="json", description="Print one JSON object on standard output.")

    @field_validator("options", mode="before")
    @classmethod
    def _options_from_words(cls, value: Any) -> Any:
        """`name=value` words, as flags give them, as a table, as TOML gives it."""
        if not isinstance(value, list):
            return value
        pairs = [str(word).partition("=") for word in value]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("write each option as name=value")
        return {name.strip(): content for name, _, content in pairs}

    @field_validator("options")
    @classmethod
    def _options_with_flags(cls, value: dict[str, float]) -> dict[str, float]:
        if own := [name for name in ("scale", "margin") if name in value]:
            raise ValueError(f"{own[0]} is a setting of its own: give it as --{own[0]} {value[own[0]]}")
        return value

    @model_validator(mode="after")
    def _patience_needs_unseen_classes(self) -> TrainSettings:
        if self.patience is not None and not self.unseen_classes:
            raise ValueError("--patience watches classes never seen; set aside some with --unseen-classes 0.1")
        return self

    @model_validator(mode="after")
    def _one_sampler(self) -> TrainSettings:
        if self.balance and self.per_class is not None:
            raise ValueError("--balance and --per-class both choose the rows of a batch; leave one out")
        if self.balance and self.loss in PAIRING:
            raise ValueError(f"--balance draws single rows, and {self.loss} compares rows in groups; use --per-class")
        return self

    def shaping(self) -> dict[str, Any]:
        """The settings that decide the weights; where data lie and what is printed does not."""
        return self.model_dump(mode="json", exclude=_CIRCUMSTANCES)


_CIRCUMSTANCES = {"data", "out", "overwrite", "json_", "resume", "checkpoint_steps", "log_to"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The figures a run really uses. `scale` and `margin` None: the loss's own."""

    loss: Loss
    epochs: float
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    scale: float | None = None
    margin: float | None = None
    start_share: float = 0.0

    @classmethod
    def resolve(cls, settings: TrainSettings, kind: Kind) -> Recipe:
        """The user's figures where given, else the measured defaults for this kind of encoder."""
        default = asdict(_DEFAULTS[kind])
        given = {name: getattr(settings, name) for name in default}
        if given["loss"] not in (None, default["loss"]):
            default |= {"scale": None, "margin": None}  # measured for another loss
        return cls(**{name: default[name] if value is None else value for name, value in given.items()})


_DEFAULTS: dict[Kind, Recipe] = {
    "static": Recipe(loss="adacos", epochs=5, batch_size=64, learning_rate=1e-2, head_learning_rate=1e-2),
    "transformer": Recipe(
        loss="normalised-softmax",
        epochs=1,
        batch_size=32,
        learning_rate=1e-4,
        head_learning_rate=1e-2,
        scale=10.0,
        start_share=0.3,
    ),
    "image": Recipe(loss="am-softmax", epochs=30, batch_size=32, learning_rate=2e-3, head_learning_rate=1e-2),
    "frozen": Recipe(
        loss="am-softmax",
        epochs=20,
        batch_size=64,
        learning_rate=1e-3,
        head_learning_rate=1e-2,
        scale=10.0,
        start_share=0.5,
    ),
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
    seed: Seed = Field(default=0, description="Seed of the sentences drawn and of the training.")
    serve: bool = Field(default=True, description="Serve the collection afterwards; --no-serve stops before.")
    port: Annotated[int, Ge(0), Le(65535)] = Field(default=8000, description="Port on 127.0.0.1 to serve at.")


class PushSettings(Settings):
    """Send a trained encoder to the Hugging Face Hub, with its card, where sentence-transformers loads it by name.

    Texts of your rows stay here unless --with-texts is given: the report, the evaluation and the list of faulty rows
    quote them.
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch push")

    model: CliPositionalArg[Path] = Field(description="Folder that surematch train wrote.")
    repository: CliPositionalArg[str] = Field(description="Repository on the Hub: OWNER/NAME.")
    private: bool = Field(default=True, description="Make a new repository private.")
    with_texts: bool = Field(default=False, description="Send report.html, evaluation.json and quoted rows, too.")
    dry_run: bool = Field(default=False, description="List what would be sent, and send nothing.")
    json_: bool = Field(default=False, alias="json", description="Print one JSON object on standard output.")
