"""Classifiers of texts as transformers has them (BertForSequenceClassification, ...), on the stacks of the families.

A family's configuration and key map are those of its language model; what is here is the head and its tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nextile.base.errors import NextileError
from nextile.models.families import bert, gemma2, gpt2, llama, mistral, mixtral, neox, qwen2, qwen3, roberta
from nextile.models.families.keymap import Rule, classes_here, classes_there, expect, same
from nextile.nn import specs

SUFFIX = "ForSequenceClassification"


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a classifier of texts, by the class that it names."""
    named = config.get("architectures")
    return isinstance(named, list) and any(isinstance(name, str) and name.endswith(SUFFIX) for name in named)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Their names. Errors: NextileError where the scores are of something else."""
    if config.get("problem_type") is not None:
        expect(config, problem_type="single_label_classification")
    classes = classes_here(config)
    if len(classes) == 1:
        raise NextileError("config.json has a single label, so the model predicts a number: nextile reads classes")
    return classes


@dataclass(frozen=True)
class Classifier:
    """What all of them are: a family's embedding and stack, called as there, under another head."""

    family: ModuleType
    stem: str  # of the class: Bert

    @property
    def MODEL_TYPE(self) -> str:  # in capitals, for a family is a module, and these are its constants
        """transformers' name of the family."""
        return self.family.MODEL_TYPE

    @property
    def ARCHITECTURE(self) -> str:
        """transformers' class."""
        return self.stem + SUFFIX

    @property
    def BESIDE(self) -> Mapping[str, str | None]:
        """As the family's."""
        return self.family.BESIDE

    def _spec(self, config: Mapping[str, Any], head: specs.TextHead) -> specs.TextClassifier:
        body = self.family.from_config({**config, "tie_word_embeddings": True})  # to a head that is left out
        return specs.TextClassifier(context=body.context, embed=body.embed, stack=body.stack, head=head)


@dataclass(frozen=True)
class Encoder(Classifier):
    """BERT and its like: a dense layer, a tanh and the scores, of the first token."""

    dense: str  # modules of the head
    scores: str

    def from_config(self, config: Mapping[str, Any]) -> specs.TextClassifier:
        """The spec of a `config.json`."""
        dropout = config.get("classifier_dropout")
        dropout = config.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
        return self._spec(config, specs.PooledHead(classes=_classes(config), dropout=dropout))

    def to_config(self, model: specs.TextClassifier) -> dict[str, Any]:
        """The `config.json` of a spec."""
        assert isinstance(model.head, specs.PooledHead)
        own = {"classifier_dropout": model.head.dropout, **classes_there(model.head.classes)}
        return self.family.to_config(model) | own

    def key_map(self, model: specs.TextClassifier) -> list[Rule]:
        """Every tensor as it is, under another name."""
        return bert.encoder_rules(model, self.MODEL_TYPE, {"head.dense": self.dense, "head": self.scores})


@dataclass(frozen=True)
class Decoder(Classifier):
    """GPT-2 and what came after it: the scores of the last token that is no padding."""

    def from_config(self, config: Mapping[str, Any]) -> specs.TextClassifier:
        """The spec of a `config.json`."""
        head = specs.LastHead(classes=_classes(config), bias=False, padding=config.get("pad_token_id"))
        return self._spec(config, head)

    def to_config(self, model: specs.TextClassifier) -> dict[str, Any]:
        """The `config.json` of a spec."""
        assert isinstance(model.head, specs.LastHead)
        own = {"pad_token_id": model.head.padding, **classes_there(model.head.classes)}
        return self.family.to_config(self._body(model)) | own

    def key_map(self, model: specs.TextClassifier) -> list[Rule]:
        """The family's, and the scores."""
        return [*self.family.key_map(self._body(model)), same("head.weight", "score.weight")]

    def _body(self, model: specs.TextClassifier) -> specs.Transformer:
        """The language model without tensors of its own in the head."""
        return specs.Transformer(context=model.context, embed=model.embed, stack=model.stack, head=specs.TiedHead())


CLASSIFIERS: dict[str, Classifier] = {
    classifier.MODEL_TYPE: classifier
    for classifier in (
        Decoder(qwen3, "Qwen3"),
        Decoder(gpt2, "GPT2"),
        Decoder(llama, "Llama"),
        Decoder(mistral, "Mistral"),
        Decoder(qwen2, "Qwen2"),
        Decoder(neox, "GPTNeoX"),
        Decoder(gemma2, "Gemma2"),
        Decoder(mixtral, "Mixtral"),
        Encoder(bert, "Bert", "bert.pooler.dense", "classifier"),
        Encoder(roberta, "Roberta", "classifier.dense", "classifier.out_proj"),
    )
}  # in the order of the families
