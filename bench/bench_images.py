"""Pictures: digits and CIFAR-10 classified, and what a painter's layers know, each with its seeds and time.

    python bench/bench_images.py digits [--seeds 0 1 2] [--minutes 2] [--out runs/bench-images]
    python bench/bench_images.py cifar --data FOLDER [--seeds 0] [--minutes 20] [--recipe cifar10]
    python bench/bench_images.py probe --data FOLDER --model RUN

FOLDER holds train.parquet and test.parquet. Of the digits a fifth, drawn by the seed and stratified, is the test set;
it is measured at the end of the run, not where it was best. On CIFAR-10 a tenth of the training pictures chooses the
state, and the test set is asked once. A run that is there is not trained again.
"""

import argparse
import json
import statistics
from pathlib import Path

import nextile
from nextile.tasks.probe import probe
from nextile.tasks.report import choose

RECIPES = Path(__file__).parent.parent / "recipes"


def rows(folder: Path, name: str) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def minutes(folder: Path) -> float:
    """What a run took."""
    return round(rows(folder, "speed.jsonl")[-1]["seconds"] / 60, 1)


def trained(data: str, folder: Path, **asked) -> nextile.Model:
    """The model of a run, which is trained now unless it was."""
    if (folder / "run.json").exists():
        return nextile.train(resume=folder)
    return nextile.train(data, out=folder, **asked)


def digits(args: argparse.Namespace) -> None:
    """Accuracy on a fifth of the digits at the end of each seed's run, and the mean."""
    found = []
    for seed in args.seeds:
        folder = args.out / f"digits-{seed}"
        trained("digits", folder, minutes=args.minutes or 2.0, settings={"seed": seed, "validation.fraction": 0.2})
        last = [row["val_accuracy"] for row in rows(folder, "metrics.jsonl") if "val_accuracy" in row][-1]
        found.append(last)
        print(json.dumps({"seed": seed, "accuracy": round(last, 4), "minutes": minutes(folder)}), flush=True)
    print(json.dumps({"mean": round(statistics.mean(found), 4)}))


def cifar(args: argparse.Namespace) -> None:
    """Accuracy on the test set of the state that was best on the pictures held out of the training set."""
    found = []
    for seed in args.seeds:
        folder = args.out / f"{args.recipe}-{seed}"
        model = trained(
            str(args.data / "train.parquet"), folder, minutes=args.minutes or 20.0,
            recipe=RECIPES / f"{args.recipe}.toml", settings={"seed": seed},
        )  # fmt: skip
        measured = model.evaluate(args.data / "test.parquet")
        found.append(measured["accuracy"])
        row = {"seed": seed, "test": round(found[-1], 4), "parameters": model.describe()["parameters"]["total"]}
        print(json.dumps(row | {"minutes": minutes(folder)}), flush=True)
    print(json.dumps({"mean": round(statistics.mean(found), 4)}))


def probes(args: argparse.Namespace) -> None:
    """Bits per dimension of a painter, and a linear probe of its layers beside raw pixels and a random network."""
    model = nextile.load(args.model)
    test = str(args.data / "test.parquet")
    print(json.dumps({"test": model.evaluate(test)}))
    print(json.dumps(probe(model, [str(args.data / "train.parquet")], [test], report=choose())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("digits", "cifar", "probe"), default="digits")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-images"))
    asked = parser.parse_args()
    {"digits": digits, "cifar": cifar, "probe": probes}[asked.what](asked)
