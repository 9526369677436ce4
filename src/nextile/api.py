"""The public calls: train, plan, load, and the Model that they give; what the command does, in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from nextile.base.config import environment, read_toml, resolve
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.pretrained import load as load_pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.generation.beam import Beams
from nextile.generation.complete import Completion, complete, complete_by_beams, draft_by
from nextile.generation.complete import stream as stream_text
from nextile.generation.fill import fill, fill_spans
from nextile.generation.pool import embed
from nextile.generation.sample import Sampling
from nextile.generation.speculate import Draft
from nextile.generation.talk import Talk
from nextile.generation.translate import Translation, translate
from nextile.images.processor import Palette
from nextile.inspection.anatomy import anatomy
from nextile.inspection.inspect import inspect
from nextile.inspection.look import Inspection
from nextile.inspection.page import html
from nextile.models import count
from nextile.nn import specs
from nextile.tasks import (
    classification,
    conversing,
    denoising,
    harness,
    labelling,
    language,
    masking,
    painting,
    preferring,
    run,
    silencing,
    translation,
    words,
)
from nextile.tasks import probe as linear_probe
from nextile.tasks.plan import Plan, make_plan
from nextile.tasks.report import Report, Silent, choose
from nextile.tasks.settings import RunSettings
from nextile.tasks.start import Start
from nextile.tasks.task import Task
from nextile.tasks.tuning import usual
from nextile.text.tokenizer import Tokenizer
from nextile.training.parallel import joined, restarted

RUNS = Path("runs")
Sources = str | Path | Sequence[str | Path]
Picture = str | Path | bytes


# How a model does on a text, or on pictures: by its task.
EVALUATORS: dict[str, Callable[[Pretrained, Sequence[str], Report], dict[str, Any]]] = {
    "classify": classification.evaluate_classifier,
    "classify-text": labelling.evaluate_labels,
    "paint": painting.evaluate_painter,
    "words": words.evaluate_words,
    "masked": masking.evaluate_masked,
    "denoise": denoising.evaluate_denoiser,
    "chat": conversing.evaluate_chat,
    "prefer": preferring.evaluate_preferring,
    "lm": language.evaluate_text,
}
# What is said of a model that cannot go on from a text.
NO_WRITERS = {
    "translate": "is a translator, not a language model: use nextile translate",
    "words": "is one of word vectors and writes nothing: use nextile words",
    "masked": "fills gaps and does not write from left to right: use generate",
    "denoise": "fills gaps and does not write from left to right: use generate",
    "paint": "reads pictures, not text: use nextile paint",
    "classify": "reads pictures, not text: use nextile classify",
    "classify-text": "says which class a text has and writes nothing: use nextile classify",
}


class Model(Pretrained):
    """A model with its tokenizer; `.model` is the torch module, ids (B, T) -> logits (B, T, V)."""

    def generate(
        self, prompt: str | Sequence[str] = "", *, max_tokens: int = 200, temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
        repetition_penalty: float = 1.0, n: int = 1, seed: int | None = None, stop: Sequence[str] = (),
        logprobs: int | None = None, beams: int | None = None, details: bool = False,
        draft: Model | Literal["lookup"] | None = None,
    ) -> Any:  # fmt: skip
        """Continue a prompt, or each of several in one batch; of a model that fills gaps, each [MASK] in it is filled.

        temperature 0 is greedy; None is that where gaps are filled, else 0.8; top_k, top_p and min_p leave out unlikely
        tokens; a stop string ends the text and is not part of it. With beams the n most probable texts are sought, and
        nothing is drawn. A draft, a smaller model of the same tokenizer or "lookup" in the text so far, proposes tokens
        that this model confirms several at a time: its texts stay as they are. Returns the text, or a list of them
        (prompt by prompt) for several prompts or n > 1; with details, `Completion`s that also hold the tokens, why each
        ended, and log-probabilities. Errors: UsageError for settings out of bounds.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if self.task == "denoise":
            _refuse_where_gaps(
                temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, stop=stop, logprobs=logprobs,
                repetition_penalty=repetition_penalty != 1.0, draft=draft,
            )  # fmt: skip
            wide = resolve(Beams, {"width": beams or 5})
            groups = fill_spans(self, prompts, wide, n=n, max_tokens=max_tokens)
        elif self.task == "masked":
            _refuse_where_gaps(beams=beams, stop=stop, logprobs=logprobs, repetition_penalty=repetition_penalty != 1.0,
                               draft=draft)  # fmt: skip
            sampling = _sampling(temperature or 0.0, top_k, top_p, min_p, 1.0, seed)
            groups = fill(self, prompts, sampling, n=n)
        elif beams is not None:
            self._refuse_others()
            _refuse_beside_beams(top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, stop=stop, logprobs=logprobs,
                                 repetition_penalty=repetition_penalty != 1.0, draft=draft)  # fmt: skip
            groups = complete_by_beams(self, prompts, resolve(Beams, {"width": beams}), max_tokens=max_tokens, n=n)
        else:
            self._refuse_others()
            sampling = _sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
            groups = complete(self, prompts, sampling, max_tokens=max_tokens, stop=list(stop), n=n, logprobs=logprobs,
                              draft=self._proposing(draft))  # fmt: skip
        found: list[Completion] = [completion for group in groups for completion in group]
        results = found if details else [completion.text for completion in found]
        return results[0] if isinstance(prompt, str) and n == 1 else results

    @property
    def streams(self) -> bool:
        """Whether it writes token by token, from left to right."""
        return self.task == "lm"

    def stream(
        self, prompt: str = "", *, max_tokens: int = 200, temperature: float | None = None, top_k: int | None = None,
        top_p: float | None = None, min_p: float | None = None, repetition_penalty: float = 1.0,
        seed: int | None = None, stop: Sequence[str] = (), draft: Model | Literal["lookup"] | None = None,
    ) -> Iterator[str]:  # fmt: skip
        """The text that `generate` would return, piece by piece as it is made."""
        self._refuse_others()
        sampling = _sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return stream_text(self, prompt, sampling, max_tokens=max_tokens, stop=list(stop), draft=self._proposing(draft))

    def talk(
        self, *, system: str | None = None, max_tokens: int = 512, temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
        repetition_penalty: float = 1.0, seed: int | None = None,
    ) -> Talk:  # fmt: skip
        """A conversation: its `ask(text)` streams an answer and remembers it.

        Errors: UsageError for a model that does not write from left to right, and for settings out of bounds.
        """
        self._refuse_others()
        sampling = _sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return Talk(self, sampling, max_tokens=max_tokens, system=system)

    def translate(
        self, text: str | Sequence[str], *, beams: int = 5, length_penalty: float = 1.0, n: int = 1,
        max_tokens: int | None = None, details: bool = False,
    ) -> Any:  # fmt: skip
        """Translate a sentence, or each of several, by beam search; one beam is greedy.

        Returns the text, or a list of them for several sentences or n > 1 (the n best of each, one after the other);
        with details `Translation`s, which also hold tokens, scores, and why each ended.
        Errors: UsageError for a model that is no translator and for settings out of bounds.
        """
        if self.task == "words":
            self._refuse_others()
        sources = [text] if isinstance(text, str) else list(text)
        chosen = resolve(Beams, {"width": beams, "length_penalty": length_penalty})
        groups = translate(self, sources, chosen, n=n, max_tokens=max_tokens)
        found: list[Translation] = [translation for group in groups for translation in group]
        results = found if details else [translation.text for translation in found]
        return results[0] if isinstance(text, str) and n == 1 else results

    def evaluate(
        self, data: Sources | None = None, *, beams: int = 5, length_penalty: float = 1.0, bleu_tokens: str = "13a",
        stride: int | None = None, tasks: str | Sequence[str] | None = None, limit: int | None = None,
        shots: int | None = None, without: str | Sequence[str] | None = None, report: Report | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Loss in nats per token, perplexity and bits per byte on a text; None: the run's own validation set.

        Of a translator, on pairs, also BLEU, chrF and accuracy (the share of translations that are the reference) of
        what it translates by so many beams; bleu_tokens: sacrebleu's way to split words. Of a classifier, on
        pictures or labelled texts, loss and accuracy; of a painter loss, perplexity and bits per dimension; of a masked
        model loss, perplexity and accuracy where tokens are hidden; of word vectors loss, and how often a word is told
        from others.

        Of a language model also: stride, by how many tokens its window goes on, fewer for more text before each token;
        None is end to end. tasks: names of lm_eval's or paths of task files, which are code that is run; of each the
        first `limit` questions, with `shots` examples before each: {"tasks": {name: {measure: value}}, ...}. On
        conversations, and of a run that learned from some, loss and perplexity of the answers alone; of a run that
        learned from preferences how often the chosen answer wins.

        without: parts that are silent meanwhile, such as "2.3", head 3 of layer 2, or "4" (`nn.silence.Part`); "whole"
        then holds the measures of the whole model beside those of the rest. "each-head" and "each-layer" measure the
        whole, and of each part how much the loss rises without it: {"heads": [{"part", "loss", "rise"}, ...], ...}.
        Errors: UsageError for these of another model, for tasks beside data, and for parts that there are not.
        """
        sources, report = [] if data is None else _sources_of(data), report or choose()
        if without is not None:
            _refuse_beside_parts(tasks=tasks, limit=limit, shots=shots)
            return self._without([without] if isinstance(without, str) else list(without), sources, report, stride,
                                 beams=beams, length_penalty=length_penalty, bleu_tokens=bleu_tokens)  # fmt: skip
        if tasks is not None:
            _refuse_beside_tasks(data=data, stride=stride)
            return harness.evaluate_tasks(self, _sources_of(tasks), report, limit=limit, shots=shots)
        _refuse_without_tasks(limit=limit, shots=shots)
        if stride is not None:
            self._refuse_others()
            if self._measured_as(sources) != "lm":
                raise UsageError("stride is of texts, and these are conversations: leave it out")
            return language.evaluate_text(self, sources, report, stride=stride)
        if self.task == "translate":
            chosen = resolve(Beams, {"width": beams, "length_penalty": length_penalty})
            return translation.evaluate_pairs(self, sources, report, beams=chosen, tokens=bleu_tokens)
        return EVALUATORS[self._measured_as(sources)](self, sources, report)

    def _without(
        self, parts: list[str], sources: list[str], report: Report, stride: int | None, **translating: Any
    ) -> dict[str, Any]:  # fmt: skip
        """What `evaluate` says without these parts, or without each."""

        def measure(report: Report) -> dict[str, Any]:
            return self.evaluate(sources or None, stride=stride, report=report, **translating)

        def loss(report: Report) -> dict[str, Any]:
            return translation.evaluate_loss(self, sources, report) if self.task == "translate" else measure(report)

        each = silencing.each_of(parts)
        if each is None:
            return silencing.evaluate_without(self, parts, measure, report)
        return silencing.evaluate_each(self, each, measure, loss, report)

    def classify(self, picture: Picture | Sequence[Picture], *, top: int = 5, details: bool = False) -> Any:
        """The most probable classes of a picture, a file or its bytes, or of each of several; of texts of each text.

        Returns [(class, probability), ...], most probable first, or a list of such lists; of texts with details
        `Labelled`s, which also say whether a text was cut. Errors: UsageError for a model that is no classifier;
        NextileError naming a file that is no picture.
        """
        if self.task == "classify-text":
            return self._label(picture, top, details)
        pictures = [picture] if isinstance(picture, (str, Path, bytes)) else list(picture)
        found = classification.classify(self, pictures, top)
        return found[0] if isinstance(picture, (str, Path, bytes)) else found

    def paint(
        self, n: int = 1, *, start: Picture | None = None, temperature: float = 1.0, top_k: int | None = None,
        top_p: float | None = None, min_p: float | None = None, seed: int | None = None, beams: int | None = None,
        report: Report | None = None,
    ) -> Any:  # fmt: skip
        """n pictures as numbers, uint8 (n, H, W, C): from nothing, or from the upper half of `start`.

        temperature, top_k, top_p, min_p, seed: as in `generate`. With beams the n most probable pictures are sought,
        which are rarely the most beautiful. Errors: UsageError for a model that is no painter.
        """
        if beams is not None:
            _refuse_beside_beams(top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
            return painting.likeliest(self, resolve(Beams, {"width": beams}), n, start)
        sampling = _sampling(temperature, top_k, top_p, min_p, 1.0, seed)
        return painting.painted(self, sampling, n, start, report or choose())

    def probe(self, data: Sources, test: Sources | None = None, *, report: Report | None = None) -> dict[str, Any]:
        """What a painter's layers know of the classes of labelled pictures, which it was never told (a linear probe).

        test: pictures to measure on; None: a fifth of the data. Returns accuracies: {"layers": {name: a}, "pixels":
        a, "untrained": a}. Errors: UsageError for a model that is no painter.
        """
        return linear_probe.probe(
            self, _sources_of(data), [] if test is None else _sources_of(test), report=report or choose()
        )

    def embed(self, text: str | Sequence[str]) -> np.ndarray:
        """A vector for a text, float32 (D,), or for each of several, (N, D): the mean of what the model makes of it.

        Of a language or masked model its last features, of an encoder-decoder the encoder's, else the word vectors.
        Errors: UsageError for a model of pictures; NextileError for a text of nothing that the model knows.
        """
        found = embed(self, [text] if isinstance(text, str) else list(text))
        return found[0] if isinstance(text, str) else found

    def inspect(
        self, what: str | Picture | Sequence[int], target: str | Sequence[int] | None = None, *,
        max_tokens: int | None = None, beams: int = 4,
    ) -> Inspection:  # fmt: skip
        """What the model makes of a text (or its token ids), of a picture, or of words, number by number.

        target: of an encoder-decoder the target beside the source; None: what the model writes itself by so many beams,
        of max_tokens at most (None: twice the source's and 16). Nothing is computed before it is asked for; in a
        notebook the page is shown. Errors: UsageError for an empty text, and for what this model does not read;
        NextileError for a text longer than it reads.
        """
        return inspect(self, what, target, max_tokens=max_tokens, beams=beams, draw=partial(html, beams=beams))

    def _label(self, text: Any, top: int, details: bool) -> Any:
        """The most probable classes of a text, or of each of several."""
        texts = [text] if isinstance(text, (str, Path, bytes)) else list(text)
        if not all(isinstance(each, str) for each in texts):
            raise UsageError(f"{self.called} classifies texts: give strings")
        found = labelling.label(self, [str(each) for each in texts], top)
        results = found if details else [each.classes for each in found]
        return results[0] if isinstance(text, str) else results

    def _proposing(self, draft: Model | Literal["lookup"] | None) -> Draft | None:
        """Errors: UsageError for a draft that does not write from left to right, or writes other tokens."""
        if isinstance(draft, Model):
            draft._refuse_others()
        return None if draft is None else draft_by(self, draft)

    def _measured_as(self, sources: Sequence[str]) -> str:
        """The task that says how well it does: of a language model what the data asks, or what its run learned."""
        if self.task != "lm":
            return self.task
        asked = self.task
        if sources:
            asked = run.task_for(sources, None).name
        elif self.folder is not None and (self.folder / run.RUN).exists():
            asked = run.read_run(self.folder).plan.task
        return asked if asked in ("chat", "prefer") else self.task

    def _refuse_others(self) -> None:
        """Errors: UsageError for a model that does not write from left to right."""
        if self.task != "lm":
            raise UsageError(f"{self.called} {NO_WRITERS[self.task]}")

    def describe(self) -> dict[str, Any]:
        """What the model is: family, parameters by part, adapter, what is packed, tokenizer, spec tree."""
        parameters = count.parameters(self.spec)
        by_part = {field.name: getattr(parameters, field.name) for field in fields(parameters)}
        return {
            "family": self.family,
            "task": self.task,
            "parameters": {"total": parameters.total, **by_part},
            **anatomy(self),
            **_reads(self.processor),
            **_caches(self.spec),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "spec": self.spec.model_dump(),
        }


def _reads(processor: Processor | None) -> dict[str, Any]:
    """What a model's inputs are made by."""
    if processor is None:
        return {}
    if isinstance(processor, Tokenizer):
        return {"tokenizer": {"kind": processor.kind, "vocab_size": processor.vocab_size}}
    colours = {"colours": len(processor.colours)} if isinstance(processor, Palette) else {}
    return {"images": {"size": processor.size, "channels": processor.channels} | colours}


def _caches(spec: Spec) -> dict[str, int]:
    """What a token that was read takes, where tokens are read one after the other."""
    if isinstance(spec, (specs.VisionTransformer, specs.TextClassifier, specs.WordModel)):
        return {}
    return {"cache_bytes_per_token": count.cache_memory(spec, rows=1, length=1)}


def load(name: str | Path, *, device: str | None = None, dtype: Any = None) -> Model:
    """Load a model folder of ours or Hugging Face's, or a name on the hub.

    device: "cpu", "cuda", ...; None takes the accelerator if there is one. dtype: "float32", "bfloat16", ...; None
    keeps what the file has. Errors: NextileError, in one line, for anything that is not a sound model folder.
    """
    return _model(load_pretrained(name, device=device, dtype=dtype))


def train(
    data: Sources | None = None, *, task: str | None = None, preset: str | None = None,
    out: str | Path | None = None, minutes: float | None = None, steps: int | None = None,
    resume: str | Path | None = None, init: str | Path | None = None, lora: int | None = None,
    recipe: str | Path | None = None, settings: Mapping[str, Any] | None = None, report: Report | None = None,
) -> Model:  # fmt: skip
    """Train a model and return the best one: on a file, a folder, "-" for standard input, or a built-in name.

    Two files whose lines belong together, or a .tsv, make a translator; pictures in folders, one a class, or in a
    Parquet file, a classifier, or with task="paint" a painter; a .csv or .jsonl with text and label a classifier of
    texts; else the task is a language model.
    minutes or steps: the budget; size and learning rate follow. out: the run's folder, runs/NAME when None.
    resume: a run's folder, to go on with it exactly. init: a model to begin from. lora: train adapters of this rank
    beside it, and nothing else of it. recipe: a TOML file of settings.
    settings: by dotted name, such as {"lr": 1e-3, "tokenizer.kind": "bpe"}; they win over NEXTILE_* in the
    environment, which wins over the recipe. Errors: NextileError, in one line with the remedy.
    """
    with joined() as world:
        report = (report or choose()) if world.first else Silent()
        if resume is not None:
            _refuse_beside_resume(data=data, task=task, preset=preset, out=out, minutes=minutes, steps=steps, init=init,
                                  lora=lora, recipe=recipe, settings=settings)  # fmt: skip
            return _model(run.resume_run(Path(resume), report, world))
        tuned = {} if lora is None else {"lora.rank": lora}
        if (lost := _lost_run(data, out)) is not None:
            return _model(run.resume_run(lost, report, world))
        if out is not None and world.first:
            run.check_free(Path(out))
        work, sources, found, start = _request(data, task, preset, init, recipe, {**(settings or {}), **tuned})
        folder = Path(out) if out is not None else Path(world.said(str(_free_folder(sources[0]))))
        return _model(
            run.new_run(
                sources,
                found,
                folder=folder,
                report=report,
                task=work,
                preset=preset,
                minutes=minutes,
                steps=steps,
                start=start,
                world=world,
            )
        )


def plan(
    data: Sources | None = None, *, task: str | None = None, preset: str | None = None,
    minutes: float | None = None, steps: int | None = None, init: str | Path | None = None, lora: int | None = None,
    recipe: str | Path | None = None, settings: Mapping[str, Any] | None = None, report: Report | None = None,
) -> Plan:  # fmt: skip
    """What `train` with the same arguments would do: sizes, memory, FLOPs, time; nothing is kept on disk."""
    tuned = {} if lora is None else {"lora.rank": lora}
    work, sources, found, start = _request(data, task, preset, init, recipe, {**(settings or {}), **tuned})
    with TemporaryDirectory(prefix="nextile-plan-") as folder:
        prepared = work.prepare(sources, found, Path(folder), report or choose(), start.model)
        first, _, outline = run.begin_with(start, work, prepared, found)
        return make_plan(
            work, prepared, found, source=" + ".join(sources), preset=preset, minutes=minutes, steps=steps,
            fixed=first.spec if first else None, width=start.width, outline=outline,
        )  # fmt: skip


def _model(loaded: Pretrained) -> Model:
    return Model(**{field.name: getattr(loaded, field.name) for field in fields(loaded)})


def _sampling(
    temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float,
    seed: int | None,
) -> Sampling:  # fmt: skip
    degree = Sampling().temperature if temperature is None else temperature
    asked = {"temperature": degree, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    return resolve(Sampling, asked | {"repetition_penalty": penalty})


def _request(
    data: Sources | None, task: str | None, preset: str | None, init: str | Path | None, recipe: str | Path | None,
    settings: Mapping[str, Any] | None,
) -> tuple[Task, list[str], RunSettings, Start]:  # fmt: skip
    """Task, sources, settings and beginning of a run.

    Of settings: defaults < the task's < a beginning's usual rates < recipe < environment < what was said.
    """
    if not data:
        raise UsageError("no data to train on: give a file, a folder, '-' or a built-in such as python-docs")
    sources, layers = _sources_of(data), [read_toml(recipe)] if recipe is not None else []
    work = run.task_for(sources, task)
    layers += [environment(), settings or {}]
    _refuse_unread(work, layers)
    found = resolve(RunSettings, work.settings, *layers)
    start = run.begin_from(init, work, preset, found)
    return work, sources, resolve(RunSettings, work.settings, usual(found, work.name, start.model), *layers), start


def _refuse_unread(work: Task, layers: Sequence[Mapping[str, Any]]) -> None:
    """Errors: UsageError for a setting that this task would not read."""
    given = sorted({name for layer in layers for name in _leaves(layer)})
    unread = [name for name in given if any(f"{name}.".startswith(f"{group}.") for group in work.unread)]
    if unread:
        raise UsageError(f"setting '{unread[0]}' does nothing in the task '{work.name}': leave it out")


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted names of all that a tree of settings says."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name


def _refuse_beside_resume(**given: Any) -> None:
    extra = [name for name, value in given.items() if value]
    if extra:
        raise UsageError(
            f"--resume goes on with a run as it was: leave out {', '.join(extra)}, or begin a new run by --init"
        )


def _refuse_where_gaps(**given: Any) -> None:
    extra = [name for name, value in given.items() if value not in (None, False, (), [])]
    if extra:
        raise UsageError(f"this does nothing where gaps are filled: leave out {', '.join(extra)}")


def _refuse_beside_tasks(**given: Any) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise UsageError(f"tasks bring their own texts and windows: leave out {', '.join(extra)}, or the tasks")


def _refuse_beside_parts(**given: Any) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise UsageError(f"without is of the loss on data, not of tasks: leave out {', '.join(extra)}, or the parts")


def _refuse_without_tasks(**given: Any) -> None:
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise UsageError(f"only tasks have a {' or '.join(extra)}: name tasks, or leave out {', '.join(extra)}")


def _refuse_beside_beams(**given: Any) -> None:
    extra = [name for name, value in given.items() if value not in (None, False, (), [])]
    if extra:
        raise UsageError(f"beams seek the likeliest text and draw nothing: leave out {', '.join(extra)}, or the beams")


def _sources_of(data: Sources) -> list[str]:
    """One source or several, as strings."""
    return [str(data)] if isinstance(data, (str, Path)) else [str(source) for source in data]


def _free_folder(source: str) -> Path:
    """runs/NAME, or runs/NAME-2, ... where that holds a run already."""
    for folder in _folders(source):
        if not (folder / run.RUN).exists() and not (folder / "config.json").exists():
            return folder
    raise UsageError(f"'{RUNS}' holds ten thousand runs of such a name: choose an --out")


def _folders(source: str) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, ..."""
    name = "text" if source == "-" else Path(source).resolve().name.split(".")[0] or "text"
    return (RUNS / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))


def _lost_run(data: Sources | None, out: str | Path | None) -> Path | None:
    """The run to go on with where torchrun has started this again: it lost a process, and had begun that run."""
    if not restarted() or not data:
        return None
    folders = [Path(out)] if out is not None else list(_folders(_sources_of(data)[0]))
    begun = [folder for folder in folders if (folder / run.RUN).exists()]
    return begun[-1] if begun else None
