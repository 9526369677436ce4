"""A name or a folder -> a loaded model with what it reads by: its tokenizer, or its pictures' processor."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from nextile.base.device import choose_device
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.adapters import CONFIG, read_adapter
from nextile.checkpoint.foreign import find_foreign, load_foreign
from nextile.checkpoint.gguf import write_gguf
from nextile.checkpoint.store import OURS, Processor, Spec, load_model, save_model
from nextile.checkpoint.tuned import join
from nextile.images.processor import FILE, AnyProcessor, Palette
from nextile.images.processor import load_processor as load_image_processor
from nextile.models.build import AnyModel
from nextile.models.families.table import family_of
from nextile.nn import specs
from nextile.nn.lora import merged
from nextile.text.frame import Frame, own_frame, usual_frame
from nextile.text.legacy import has_text
from nextile.text.masks import sentinels_of
from nextile.text.tokenizer import Tokenizer

HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.spm", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class Pretrained:
    """A model that runs, what it is, and what turns texts or pictures into its inputs."""

    model: AnyModel
    processor: Processor | None  # None: it came without, as checkpoints of other programs may
    spec: Spec
    family: str  # "qwen3", "gpt2", ..., or "nextile" for what no other program knows
    folder: Path | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokens that it speaks. Errors: UsageError for a model that reads pictures."""
        if self.processor is None:
            raise UsageError(
                f"{self.called} has no tokenizer that nextile reads: give it one by "
                f"nextile convert {self.called} FOLDER --tokenizer MODEL, where MODEL is a folder that has it"
            )
        if not isinstance(self.processor, Tokenizer):
            raise UsageError(f"{self.called} reads pictures, not text: use nextile {_verb(self.processor)}")
        return self.processor

    @property
    def images(self) -> AnyProcessor:
        """How it reads pictures. Errors: UsageError for a model that reads text."""
        if self.processor is None or isinstance(self.processor, Tokenizer):
            raise UsageError(f"{self.called} reads text, not pictures: use nextile generate or translate")
        return self.processor

    @property
    def frame(self) -> Frame:
        """What stands around a text that it classifies; of a family's model, which others may have trained, its
        tokenizer says it. Errors: UsageError for a model that reads pictures.
        """
        return (usual_frame if self.family == OURS else own_frame)(self.tokenizer)

    @property
    def task(self) -> str:
        """What it is for: the name of the task that trains such a model."""
        if isinstance(self.spec, specs.VisionTransformer):
            return "classify"
        if isinstance(self.spec, specs.TextClassifier):
            return "classify-text"
        if isinstance(self.processor, Palette):
            return "paint"
        if isinstance(self.spec, specs.WordModel):
            return "words"
        if isinstance(self.spec, specs.EncoderDecoder):
            return "denoise" if sentinels_of(self.tokenizer) else "translate"
        return "lm" if self.spec.stack.causal else "masked"

    @property
    def called(self) -> str:
        """How an error names it."""
        return "this model" if self.folder is None else f"'{self.folder}'"

    def save(self, folder: str | Path) -> None:
        """Write the model folder (see `checkpoint.store`), or a GGUF file where the name ends in .gguf.

        An adapter is folded into the weights that are written; the model itself stays as it is.
        """
        write = write_gguf if Path(folder).suffix == ".gguf" else save_model
        with merged(self.model):
            write(folder, self.model, self.processor)


def _verb(processor: AnyProcessor) -> str:
    return "paint" if isinstance(processor, Palette) else "classify"


def load(
    name: str | Path, *, device: str | None = None, dtype: str | torch.dtype | None = None, heads: int | None = None
) -> Pretrained:
    """Load a folder of ours or Hugging Face's, a checkpoint of nanoGPT, minGPT or LitGPT, a .gguf, or a hub's name.

    device: "cpu", "cuda", ...; None takes the accelerator if there is one. dtype: "float32", "bfloat16", ...; None
    keeps what the file has. heads: how many a minGPT has, whose file does not say it.
    Errors: NextileError for anything that is not a sound model.
    """
    folder = locate(name)
    if foreign := find_foreign(folder):
        found = load_foreign(foreign, device=choose_device(device), dtype=_dtype(dtype), heads=heads)
        return Pretrained(found.model, found.tokenizer, found.model.spec, found.family, folder)
    if (folder / CONFIG).exists():
        return _load_tuned(folder, device, dtype)
    model, family = load_model(folder, device=choose_device(device), dtype=_dtype(dtype))
    processor = load_processor(folder) if has_text(folder) or (folder / FILE).exists() else None
    return Pretrained(model, processor, model.spec, family, folder)


def _load_tuned(folder: Path, device: str | None, dtype: str | torch.dtype | None) -> Pretrained:
    """A folder of an adapter, beside the base that it names. Errors: NextileError where that is not to be found."""
    name = read_adapter(folder).config.base
    if not name:
        raise NextileError(f"'{folder / CONFIG}' names no base: write base_model_name_or_path into it")
    if (locate(name) / CONFIG).exists():
        raise NextileError(f"the base of '{folder}' is an adapter itself, '{name}': nextile convert makes one of both")
    base = load(name, device="cpu", dtype=dtype)
    model = join(folder, base.model, locate(name)).to(choose_device(device)).eval()
    own = has_text(folder) or (folder / FILE).exists()
    family = base.family if model.spec == base.spec else family_of(model.spec) or OURS
    return Pretrained(model, load_processor(folder) if own else base.processor, model.spec, family, folder)


def load_processor(folder: Path) -> Processor:
    """What a model folder's inputs are made by. Errors: NextileError when that is missing or broken."""
    reads_text = has_text(folder) or not (folder / FILE).exists()
    return Tokenizer.load(folder) if reads_text else load_image_processor(folder)


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    found = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(name, name)
    dtype = getattr(torch, found, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise NextileError(f"dtype {name!r} is unknown: use float32, bfloat16 or float16")
    return dtype


def locate(name: str | Path) -> Path:
    """The folder of a name: a path here, else the hub's cache, else the hub."""
    folder = Path(name).expanduser()
    if folder.exists() or not HUB_NAME.fullmatch(str(name)):
        return folder  # what is wrong with it is said by who reads it
    return _from_hub(str(name))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, etag_timeout=5))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0][:200]
        raise NextileError(
            f"'{name}' is neither a folder here nor a model that the hub gives ({why}): name the --out of a run"
        ) from error
