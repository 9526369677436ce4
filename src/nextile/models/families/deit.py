"""DeiT (Touvron et al. 2021): ViT with a second summary, which has learned from a teacher."""

from collections.abc import Mapping
from typing import Any

from nextile.models.families import vit
from nextile.models.families.keymap import Rule, same, stacked
from nextile.nn import specs

MODEL_TYPE, ARCHITECTURE = "deit", "DeiTForImageClassificationWithTeacher"

SIZES = {f"deit-{name}": vit.SIZES[f"vit-{name}"] for name in ("tiny", "small", "base")}

BESIDE = vit.copies("deit")


def spec(**sizes: Any) -> specs.VisionTransformer:
    """The shape of DeiT, in the words of ViT's."""
    model = vit.spec(**sizes)
    return specs.VisionTransformer(
        embed=model.embed, stack=model.stack, head=specs.DistilledHead(classes=model.head.classes)
    )


def from_config(config: Mapping[str, Any]) -> specs.VisionTransformer:
    """The spec of a `config.json`."""
    return spec(**vit.sizes_here(config))


def to_config(model: specs.VisionTransformer) -> dict[str, Any]:
    """The `config.json` of a spec."""
    assert isinstance(model.head, specs.DistilledHead)
    return vit.to_config(model)


def key_map(model: specs.VisionTransformer) -> list[Rule]:
    """As ViT's; the two summaries are two tensors there."""
    summaries = [f"deit.embeddings.{name}_token" for name in ("cls", "distillation")]
    heads = {"head.labels": "cls_classifier", "head.teacher": "distillation_classifier"}
    rules = [stacked("embed.summary", summaries, there=(1, 1, model.stack.width))]
    rules += [same(f"{a}.{part}", f"{b}.{part}") for a, b in heads.items() for part in ("weight", "bias")]
    return rules + vit.body_rules(model, "deit")
