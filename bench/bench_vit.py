"""The speed of pictures: ViT-B/16 beside transformers' with the same weights, and painting with a cache and without.

    python bench/bench_vit.py [--rounds 5] [--batch 8] [--dtypes float32 bfloat16] [--side 16] [--pictures 4]

Both sides of a pair run in one process and take turns, painting without a cache once, between two measurements with it;
their results must be the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch._inductor import config as inductor

from nextile.checkpoint.convert import write
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import imagegpt, vit
from nextile.training.graph import one_graph

GREEDY = Sampling(temperature=0.0)
CLASSES = tuple(f"LABEL_{number}" for number in range(1000))


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of each, which take turns."""
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(seconds(run))
    return {name: statistics.median(found) for name, found in times.items()}


@torch.no_grad()
def classifying(dtype: torch.dtype, batch: int, rounds: int) -> None:
    """Pictures a second of a ViT-B/16 with random weights, ours as it is loaded and compiled."""
    spec = vit.spec(classes=CLASSES, **vit.SIZES["vit-base"])
    ours = build(spec).eval()
    config = transformers.ViTConfig(**vit.to_config(spec))
    theirs = transformers.ViTForImageClassification(config).eval()
    weights = write(vit.key_map(spec), {name: value.detach() for name, value in ours.named_parameters()})
    theirs = _loaded(theirs, weights).to(dtype)
    ours = ours.to(dtype)
    images = torch.randn(batch, 3, 224, 224, dtype=dtype)
    compiled = one_graph(ours.forward)
    packed = one_graph(lambda images: ours(images))
    with inductor.patch(freezing=True):  # weights as the library wants them, once
        packed(images)
    difference = (ours(images).float() - theirs(images).logits.float()).abs().max().item()
    ways = {
        "transformers": lambda: theirs(images).logits,
        "nextile": lambda: ours(images),
        "nextile, compiled": lambda: compiled(images),
        "nextile, compiled, weights packed": lambda: packed(images),
    }
    for name, median in in_turn(ways, rounds).items():
        print(f"| ViT-B/16, {str(dtype).removeprefix('torch.')} | {name} | {batch / median:.2f} pictures/s | ", end="")
        print(f"largest difference {difference:.1e} |")


def _loaded(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Their model with these weights, through a folder, as their users load it."""
    from tempfile import TemporaryDirectory

    from safetensors.torch import save_file

    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
        return type(model).from_pretrained(folder).eval()


@torch.inference_mode()
def painting(side: int, pictures: int, rounds: int) -> None:
    """Seconds for a few pictures of an image-GPT with random weights, with a cache, and reading anew for each pixel."""
    pixels = side * side
    model = build(imagegpt.spec(vocab=513, context=pixels, width=128, depth=4, heads=4)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("embed"):
                parameter.mul_(3.0)

    def cached() -> torch.Tensor:
        found = torch.zeros(pictures, pixels, dtype=torch.long)
        places = [0] * pictures
        for event in decode(model, [[512]] * pictures, GREEDY, max_tokens=pixels, compiled=False):
            found[event.row, places[event.row]] = event.token
            places[event.row] += 1
        return found

    def uncached() -> torch.Tensor:
        ids = torch.full((pictures, 1), 512)
        for _ in range(pixels):
            ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
        return ids[:, 1:]

    before = in_turn({"with a cache": cached}, rounds)["with a cache"]
    began = time.perf_counter()
    anew = uncached()  # once: it takes minutes
    without = time.perf_counter() - began
    after = in_turn({"with a cache": cached}, rounds)["with a cache"]
    assert torch.equal(cached(), anew), "the two do not paint the same"
    kept = statistics.mean((before, after))
    print(f"| painting {pictures} of {side} x {side} | with a cache {kept:.2f} s | without {without:.2f} s | ", end="")
    print(f"{without / kept:.1f} x |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=4)
    asked = parser.parse_args()
    for name in asked.dtypes:
        classifying(getattr(torch, name), asked.batch, asked.rounds)
    painting(asked.side, asked.pictures, asked.rounds)
