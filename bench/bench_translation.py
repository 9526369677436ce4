"""Translation quality: a recipe trained and measured seed by seed; settings of the search come from validation alone.

    python bench/bench_translation.py [--data MULTI30K] [--recipe multi30k | multi30k-2017] [--seeds 0 1 2]
                                      [--minutes 30 | --steps N] [--raw] [--out runs/bench-translation]

MULTI30K is a folder with train, val and test_2016_flickr in .en and .de, a sentence a line. As in the published work
they are normalised, lower-cased and tokenized, by sacremoses, and BLEU splits at spaces; --raw leaves them as they are,
and BLEU has its usual 13a. Without --data the built-in numbers are learned for two minutes. A run that is there is not
trained again, so that seeds can be added; what is unfinished goes on.
"""

import argparse
import json
import statistics
from pathlib import Path

import nextile
from nextile.tasks.curve import best_validation

RECIPES = Path(__file__).parent.parent / "recipes"
PRESETS = {"multi30k": "modern", "multi30k-2017": "marian-tiny"}
PENALTIES = (0.6, 1.0, 1.4, 1.8)
SPLITS = ("train", "val", "test_2016_flickr")


def prepared(data: Path, out: Path, raw: bool) -> dict[str, list[str]]:
    """The two files of each split, normalised, lower-cased and tokenized unless raw."""
    if raw:
        return {split: [str(data / f"{split}.{side}") for side in ("en", "de")] for split in SPLITS}
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    out.mkdir(parents=True, exist_ok=True)
    for side in ("en", "de"):
        normal, tokens = MosesPunctNormalizer(lang=side), MosesTokenizer(lang=side)
        for split in SPLITS:
            lines = (data / f"{split}.{side}").read_text(encoding="utf-8").removesuffix("\n").split("\n")
            done = (tokens.tokenize(normal.normalize(line.lower()), return_str=True, escape=False) for line in lines)
            (out / f"{split}.{side}").write_text("".join(f"{line}\n" for line in done), encoding="utf-8")
    return {split: [str(out / f"{split}.{side}") for side in ("en", "de")] for split in SPLITS}


def trained(files: dict[str, list[str]], recipe: str, seed: int, folder: Path, budget: dict) -> nextile.Model:
    """The best model of a run, which is trained now unless it was."""
    if (folder / "run.json").exists():
        return nextile.train(resume=folder)
    return nextile.train(
        files["train"], preset=PRESETS[recipe], recipe=RECIPES / f"{recipe}.toml", out=folder,
        settings={"seed": seed, "validation.data": files["val"]}, **budget,
    )  # fmt: skip


def measured(model: nextile.Model, files: dict[str, list[str]], tokens: str) -> dict[str, float]:
    """The penalty that is best on validation, and what it gives on the test set."""

    def bleu(split: str, **search) -> float:
        return model.evaluate(files[split], bleu_tokens=tokens, **search)["bleu"]

    found = {penalty: bleu("val", length_penalty=penalty) for penalty in PENALTIES}
    best = max(found, key=found.__getitem__)
    return {
        "val_bleu": found[best],
        "penalty": best,
        "test_bleu": bleu("test_2016_flickr", length_penalty=best),
        "test_bleu_greedy": bleu("test_2016_flickr", beams=1),
    }


def multi30k(args: argparse.Namespace) -> None:
    """A row for each seed, and their mean."""
    files = prepared(args.data, args.out / "data", args.raw)
    tokens = "13a" if args.raw else "none"
    budget = {"steps": args.steps} if args.steps else {"minutes": args.minutes}
    rows = []
    for seed in args.seeds:
        folder = args.out / f"{args.recipe}{'-raw' if args.raw else ''}-{seed}"
        model = trained(files, args.recipe, seed, folder, budget)
        minutes = [json.loads(line)["seconds"] / 60 for line in (folder / "speed.jsonl").read_text().splitlines()][-1]
        row = {"recipe": args.recipe, "seed": seed, "minutes": round(minutes, 1)}
        row |= {"val_loss": best_validation(folder)["loss"], **measured(model, files, tokens)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    for name in ("val_bleu", "test_bleu", "test_bleu_greedy"):
        found = [row[name] for row in rows]
        print(f"{name}: mean {statistics.mean(found):.2f} of {', '.join(f'{each:.2f}' for each in found)}")
    print(f"parameters: {model.describe()['parameters']['total']:,}")


def numbers(args: argparse.Namespace) -> None:
    """The share of numbers below a million that were never seen and are translated to the letter."""
    folder = args.out / "numbers"
    model = nextile.train(resume=folder) if (folder / "run.json").exists() else None
    model = model or nextile.train("numbers-en-de", minutes=2, out=folder)
    print(json.dumps(model.evaluate()))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe", choices=PRESETS, default="multi30k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-translation"))
    args = parser.parse_args()
    multi30k(args) if args.data else numbers(args)


if __name__ == "__main__":
    main()
