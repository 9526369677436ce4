"""A name or a folder -> a loaded model with what it reads by: its tokenizer, or its pictures' processor."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from nextile.base.device import choose_device
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.store import Processor, Spec, load_model, save_model
from nextile.images.processor import FILE, AnyProcessor, Palette
from nextile.images.processor import load_processor as load_image_processor
from nextile.models.build import AnyModel
from nextile.nn import specs
from nextile.text.masks import sentinels_of
from nextile.text.tokenizer import Tokenizer

HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
FILES = ["*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True)
class Pretrained:
    """A model that runs, what it is, and what turns texts or pictures into its inputs."""

    model: AnyModel
    processor: Processor
    spec: Spec
    family: str  # "qwen3", "gpt2", ..., or "nextile" for what no other program knows
    folder: Path | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokens that it speaks. Errors: UsageError for a model that reads pictures."""
        if not isinstance(self.processor, Tokenizer):
            raise UsageError(f"{self.called} reads pictures, not text: use nextile {_verb(self.processor)}")
        return self.processor

    @property
    def images(self) -> AnyProcessor:
        """How it reads pictures. Errors: UsageError for a model that reads text."""
        if isinstance(self.processor, Tokenizer):
            raise UsageError(f"{self.called} reads text, not pictures: use nextile generate or translate")
        return self.processor

    @property
    def task(self) -> str:
        """What it is for: the name of the task that trains such a model."""
        if isinstance(self.spec, specs.VisionTransformer):
            return "classify"
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
        """Write the model folder (see `checkpoint.store`)."""
        save_model(folder, self.model, self.processor)


def _verb(processor: AnyProcessor) -> str:
    return "paint" if isinstance(processor, Palette) else "classify"


def load(name: str | Path, *, device: str | None = None, dtype: str | torch.dtype | None = None) -> Pretrained:
    """Load a folder of ours or Hugging Face's, or a name on the Hugging Face hub.

    device: "cpu", "cuda", ...; None takes the accelerator if there is one. dtype: "float32", "bfloat16", ...; None
    keeps what the file has. Errors: NextileError for anything that is not a sound model folder.
    """
    folder = locate(name)
    model, family = load_model(folder, device=choose_device(device), dtype=_dtype(dtype))
    return Pretrained(model, load_processor(folder), model.spec, family, folder)


def load_processor(folder: Path) -> Processor:
    """What a model folder's inputs are made by. Errors: NextileError when that is missing or broken."""
    reads_text = (folder / "tokenizer.json").exists() or not (folder / FILE).exists()
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
