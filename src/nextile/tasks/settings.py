"""Everything about a run that can be set; what is left open follows from the data and the budget."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nextile.base.config import Settings, resolve
from nextile.base.errors import NextileError
from nextile.checkpoint.weights import read_json
from nextile.data.growth import Growth
from nextile.images.augment import Augment
from nextile.images.augment import Probability as Share
from nextile.nn.init import Init
from nextile.nn.lora import Lora
from nextile.nn.specs import Length, Probability, Side, Width
from nextile.training.optim import AdamW, Muon, OptimizerSettings
from nextile.training.parallel import Parallel
from nextile.training.schedule import Linear, Schedule

Count = Annotated[int, Field(ge=1, le=1 << 32)]
Few = Annotated[int, Field(ge=1, le=1 << 10)]
Rate = Annotated[float, Field(gt=0.0)]
OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class TokenizerChoice(Settings):
    """What a token is."""

    kind: Literal["auto", "char", "word", "byte", "bpe"] = "auto"  # auto: characters for small corpora, else BPE
    size: Count | None = None  # how many tokens at most, for word and bpe


class Validation(Settings):
    """What is held out, and how often the model is asked about it."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    data: tuple[str, ...] = ()  # a source of its own, given as that to train on; then nothing is held out
    every: Count | None = None  # steps

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given


class Checkpoint(Settings):
    """When the state to resume from is saved."""

    every: Count | None = None  # steps; None: at each validation
    average: Annotated[int, Field(ge=1, le=100)] = 1  # of the last so many, if that is better (Vaswani et al. 2017)


class Images(Settings):
    """How pictures are read."""

    size: Side | None = None  # of the square they are made to; None: their usual one, up to what trains on a laptop
    colours: Annotated[int, Field(ge=2, le=1 << 15)] = 512  # of a painter's palette, at most


class Augmenting(Augment):
    """How pictures are changed in training; None follows from them."""

    flip: Share | None = None  # None: half of coloured pictures, no grey ones, which are often writing
    crop: Annotated[int, Field(ge=0, le=1 << 10)] | None = None  # None: an eighth of the size

    def chosen(self, size: int, channels: int) -> Augment:
        """What is done to pictures of this size and so many channels."""
        automatic = {"flip": 0.5 if channels == 3 else 0.0, "crop": size // 8}
        said = {name: value for name, value in self.model_dump().items() if value is not None}
        return Augment.model_validate(automatic | said)


class Words(Settings):
    """How word vectors are learned; the names are the field's since word2vec."""

    epochs: Rate = 5.0  # passes over the text, where no budget is given
    dim: Width = 100  # numbers of a vector
    window: Few = 5
    negatives: Few = 5
    subsample: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-3  # words that are more of the text are left out at random
    min_count: Count = 5  # words that occur less often are left out


class Masking(Settings):
    """What a masked model is asked, and what it sees there instead (Devlin et al. 2019)."""

    share: OpenShare = 0.15  # of the tokens that are asked; of these
    masked_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8  # show the mask,
    random_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1  # another token, and the rest themselves


class SpanNoise(Settings):
    """Random spans are cut out, to be written again (Raffel et al. 2020)."""

    type: Literal["spans"] = "spans"
    share: OpenShare = 0.15  # of the tokens
    mean: Annotated[float, Field(ge=1.0, le=1 << 16)] = 3.0  # tokens of a span


class PrefixNoise(Settings):
    """The end is cut off, to be written again: a prefix language model (Raffel et al. 2020)."""

    type: Literal["prefix"] = "prefix"


class Preferring(Settings):
    """How a model learns which of two answers is preferred (Rafailov et al. 2023)."""

    beta: Rate = 0.1  # how much the model is held near the one that it begins from


class LoraChoice(Lora):
    """Adapters beside a base that stays (`--lora R` is lora.rank=R), and what the base is packed as meanwhile."""

    base: Literal["full", "int8", "int4"] = "full"

    @field_validator("targets", mode="before")
    @classmethod
    def _with_commas(cls, given: Any) -> Any:
        return tuple(given.split(",")) if isinstance(given, str) else given


class RunSettings(Settings):
    """A run's settings; the names are the command line's (`--set lr=1e-3 --set tokenizer.kind=bpe`)."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    device: str | None = None  # None: the accelerator if there is one
    threads: Count | None = None
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"  # fp8: the blocks' products, the rest as with bf16
    compile: Literal["auto"] | bool = "auto"  # auto: where a compiler is found and the run is long enough to pay for it
    attention: Literal["auto", "flex"] = "auto"  # flex: FlexAttention in steps whose rows are packed or have windows
    batch: Count | None = None  # rows of a step
    accumulate: Count = 1  # parts a step's rows are worked on in, to save memory; the result is the same
    growth: Growth = Growth()  # the first steps may take fewer of these parts, and read rows as shorter texts
    context: Length | None = None  # tokens of a row
    lr: Rate | None = None  # the peak; Muon's rate for matrices goes with it
    optimizer: OptimizerSettings = Muon()
    schedule: Schedule = Linear()
    clip: Rate = 1.0  # of the gradient's global norm
    dropout: Probability | None = None
    initialisation: Init = "normal"  # zero_out: what ends a branch, and the head, begin at 0 (docs/speedrun.md)
    label_smoothing: Probability = 0.0
    r_drop: Weight = 0.0  # how much two passes with different dropout must agree (Liang et al. 2021)
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    parallel: Parallel = Parallel()  # how the processes of torchrun share the model
    tokenizer: TokenizerChoice = TokenizerChoice()
    words: Words = Words()
    masking: Masking = Masking()
    denoise: Annotated[SpanNoise | PrefixNoise, Field(discriminator="type")] = SpanNoise()
    preference: Preferring = Preferring()
    images: Images = Images()
    augment: Augmenting = Augmenting()
    lora: LoraChoice | None = None  # present: what --init names is tuned by adapters
    model: dict[str, Any] = Field(default_factory=dict)  # laid over the model's spec tree: model.stack.depth=6

    @model_validator(mode="after")
    def _fp8_of_whole_matrices(self):
        if self.precision != "fp8":
            return self
        if self.lora is not None:
            raise ValueError("precision 'fp8' is for training in full: leave lora out, or use bf16")
        if self.parallel.tensor > 1:
            raise ValueError("precision 'fp8' wants whole matrices: use parallel.shard instead of .tensor, or bf16")
        return self

    def optimizer_settings(self) -> AdamW | Muon:
        """The optimizer with `lr` put in: it replaces AdamW's rate, and Muon's for matrices keeps its proportion."""
        if self.lr is None:
            return self.optimizer
        rates = {"lr": self.lr}
        if isinstance(self.optimizer, Muon):
            rates["matrix_lr"] = self.optimizer.matrix_lr * self.lr / self.optimizer.lr
        return self.optimizer.model_copy(update=rates)


def recorded(folder: Path | None) -> RunSettings:
    """The settings of the run in a folder; the defaults where there is none. Errors: NextileError for a broken one."""
    if folder is None or not (folder / "run.json").exists():
        return RunSettings()
    given = read_json(folder / "run.json").get("settings")
    if not isinstance(given, dict):
        raise NextileError(f"'{folder / 'run.json'}' is damaged, its settings are no table: get a sound copy of it")
    return resolve(RunSettings, given)
