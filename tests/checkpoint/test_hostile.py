"""Folders that somebody wrote to do harm: refused in one line, at once, and before anything large is allocated."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import load
from nextile.checkpoint.store import load_model, load_spec, save_model
from nextile.checkpoint.weights import load_folder, load_tensors, read_json, save_tensors
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.models.families.table import FAMILIES
from nextile.text.characters import train_characters

SPEC = gpt2.spec(vocab=30, context=32, width=16, depth=2, heads=2)
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
INDEX = "model.safetensors.index.json"
BUFFER = 1 << 18  # bytes that a file is hashed by


@pytest.fixture
def folder(tmp_path):
    """A sound model folder."""
    save_model(tmp_path / "model", build(SPEC, seed=3), train_characters(["the quick brown fox"]))
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _soon():
    """What waits, for a pipe that nobody writes to, fails."""

    def late(number, frame):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(folder: Path, *words: str) -> None:
    """Loading is refused, in one line that can be read, with these words."""
    with pytest.raises(NextileError) as caught:
        load(folder, device="cpu")
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 2500
    assert any(word in said for word in words), said


# --- files that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "not a regular file", "there is no tokenizer.json")


@pytest.mark.parametrize("read", [load_tensors, read_json])
def test_a_pipe_that_came_after_somebody_looked_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NextileError, match="not a regular file"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "not a regular file", "there is no tokenizer.json")


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file(folder, name):
    (folder / name).write_bytes(b"")
    refused(folder, "cannot be read as JSON", "its header is not whole", "is broken")


@pytest.mark.parametrize("name", FILES)
def test_a_device(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, "is a link that leaves its folder", "there is no tokenizer.json")


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder(folder, name):
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(Path("..", "elsewhere"))
    refused(folder, "is a link that leaves its folder")


def test_a_link_within_the_folder(folder):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    load(folder, device="cpu")


def in_cache(folder: Path) -> Path:
    """The folder as the hub's cache has it: links into a folder of blobs beside the snapshots."""
    entry = folder.parent / "models--a--b"
    (entry / "blobs").mkdir(parents=True)
    snapshot = entry / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(entry / "blobs" / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"hash-of-{path.name}"))
    return snapshot


def test_the_cache_of_the_hub_is_made_of_links(folder):
    load(in_cache(folder), device="cpu")


@pytest.mark.parametrize("target", ["../../../secret", "../../blobs/link"])
def test_a_link_out_of_the_cache(folder, target):
    snapshot = in_cache(folder)
    (folder.parent / "secret").write_text("{}")
    (snapshot.parent.parent / "blobs" / "link").symlink_to(folder.parent / "secret")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(target)
    refused(snapshot, "is a link that leaves its folder")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", "x\n", "a\0"])
def test_an_index_that_points_elsewhere(folder, name):
    for place in (folder.parent, folder):
        save_tensors(place / "x.safetensors", {"a": torch.zeros(1)})
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    refused(folder, "is not the name of a file in that folder")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "none"}}])
def test_an_index_that_is_none(folder, index):
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "has no weight_map of file names", "is missing")


@pytest.mark.parametrize(("size", "said"), [(-1, "not those|its header says"), (0, "its header is not whole")])
def test_a_file_that_another_program_is_writing(folder, size, said):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(NextileError, match=said):
        load_tensors(path)


# --- code -------------------------------------------------------------------------------------------------------------


def test_code_of_the_folder_is_not_run_and_that_is_said(folder, caplog):
    (folder / "mine.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    load(folder, device="cpu")
    assert not caplog.records
    config["auto_map"] = {"AutoModelForCausalLM": "mine.Model", "AutoConfig": "mine.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    load(folder, device="cpu")
    assert not (folder / "canary").exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"'{folder}' names code of its own (auto_map in config.json), which nextile never runs"
    ]


# --- configurations ---------------------------------------------------------------------------------------------------

EVIL = [
    "1e999", "NaN", "-Infinity", "-1", "0", "1.5", "1000000000", "1" + "0" * 30, "9" * 400, "1e308", "null", "[]", "{}",
    "[1, 2]", '{"a": [1]}', '"x"', '"auto"', '"\\u001b[2J\\n"', '"\\ud800"',
]  # fmt: skip


def config_of(name: str) -> dict:
    """A sound configuration of a family: the fields that it says, for the model that transformers makes by default."""
    theirs = json.loads(transformers.AutoConfig.for_model(name).to_json_string())
    theirs |= {"model_type": name, "architectures": [FAMILIES[name].ARCHITECTURE]}
    return theirs


def fields(config: dict) -> list[tuple[str, ...]]:
    """The places of a configuration, those one level down included."""
    inner = [(name, key) for name, value in config.items() if isinstance(value, dict) for key in value]
    return [(name,) for name in config] + inner


def replaced(config: dict, place: tuple[str, ...], text: str) -> str:
    """The JSON with this text in that place."""
    (*above, last) = place
    owner = config = json.loads(json.dumps(config))
    for name in above:
        owner = owner[name]
    owner[last] = "@here@"
    return json.dumps(config).replace('"@here@"', text)


def outcome(folder: Path, text: str) -> str | None:
    """What is said, in one line and at once, against a configuration; None where it is taken."""
    (folder / "config.json").write_text(text)
    began = time.process_time()
    try:
        load_spec(folder)
        said = None
    except NextileError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 2500
    assert time.process_time() - began < 1.0
    return said


@pytest.mark.parametrize("name", FAMILIES)
def test_each_field_of_each_family_with_each_evil_value(name, tmp_path):
    config = config_of(name)
    assert outcome(tmp_path, json.dumps(config)) is None
    said = [outcome(tmp_path, replaced(config, place, evil)) for place in fields(config) for evil in EVIL]
    assert sum(each is not None for each in said) > 5 * len(EVIL)


@pytest.mark.parametrize("name", FAMILIES)
def test_true_is_no_number(name, tmp_path):
    config = config_of(name)
    sizes = [field for field in ("num_hidden_layers", "num_layers", "n_layer", "vocab_size") if field in config]
    assert sizes
    for field in sizes:
        assert outcome(tmp_path, replaced(config, (field,), "true")), field


def test_true_is_no_number_in_a_spec_either(tmp_path):
    config = {"model_type": "nextile", "nextile": SPEC.model_dump()}
    assert outcome(tmp_path, json.dumps(config)) is None
    config["nextile"]["stack"]["depth"] = True
    assert "depth is true" in str(outcome(tmp_path, json.dumps(config)))


@pytest.mark.parametrize(
    "evil", [json.dumps("A" * 10_000_000), "[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000]
)
@pytest.mark.parametrize("place", ["model_type", "n_layer", "activation_function", "scale_attn_weights"])
def test_what_is_long_or_deep(tmp_path, place, evil):
    assert outcome(tmp_path, replaced(config_of("gpt2"), (place,), evil))


def test_a_name_that_stands_there_twice(tmp_path):
    text = json.dumps(config_of("gpt2"))
    assert "'n_layer' stands there twice" in str(outcome(tmp_path, text[:-1] + ', "n_layer": 3}'))


def test_more_values_than_a_configuration_can_have(tmp_path):
    (tmp_path / "config.json").write_text("[" + "[]," * 1_000_000 + "[]]")
    with pytest.raises(NextileError, match="more than 1,048,576 values"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("field", ["n_embd", "n_layer", "n_positions", "vocab_size"])
def test_a_size_unlike_the_weights_is_refused_before_anything_is_allocated(folder, field):
    largest = {"n_embd": 1 << 15, "n_layer": 1024, "n_positions": 1 << 24, "vocab_size": 1 << 24}[field]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: largest}))
    began = time.process_time()
    refused(folder, "of different models", "of another model")
    assert time.process_time() - began < 1.0


def test_a_thousand_blocks_without_weights_are_not_made(folder):
    config = {"model_type": "nextile", "nextile": SPEC.model_dump()}
    config["nextile"]["stack"]["depth"] = 1024
    (folder / "config.json").write_text(json.dumps(config))
    began = time.process_time()
    refused(folder, "config.json has 1024 blocks")
    assert time.process_time() - began < 1.0


def test_weights_that_are_whole_numbers(folder):
    tensors = dict(load_tensors(folder / "model.safetensors"))
    name = "transformer.wte.weight"
    save_tensors(folder / "model.safetensors", tensors | {name: torch.zeros(30, 16, dtype=torch.int32)})
    refused(folder, "as int32")


# --- safetensors ------------------------------------------------------------------------------------------------------


def packed(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(name="a", dtype="F32", shape="[2]", start=0, end=8) -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


BROKEN = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 2),
    "a length that lies": struct.pack("<Q", 1 << 63) + b"{}",
    "no object": packed(b"[]"),
    "torn": packed(b'{"a":{"dtype":"F32"'),
    "more after it": packed(b"{} x"),
    "a comma too many": packed(b'{"__metadata__":{},}'),
    "not UTF-8": packed(b'{"__metadata__":{"\xff":"x"}}'),
    "a lone surrogate": packed(b'{"__metadata__":{"\\ud800":"x"}}'),
    "control characters": packed(('{"a\\n":' + entry()[4:] + "}").encode(), bytes(8)),
    "a terminal's": packed(('{"\\u001b[2J":' + entry()[4:] + "}").encode(), bytes(8)),
    "deep": packed(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "deep lists": packed(b'{"a":{"dtype":"F32","shape":' + b"[" * 50_000),
    "a name of 2 kB": packed(("{" + entry("a" * 2000) + "}").encode(), bytes(8)),
    "twice": packed(("{" + entry() + "," + entry() + "}").encode(), bytes(8)),
    "overlapping": packed(("{" + entry() + "," + entry("b", start=4, end=12) + "}").encode(), bytes(12)),
    "a gap": packed(("{" + entry() + "," + entry("b", start=12, end=20) + "}").encode(), bytes(20)),
    "beyond the end": packed(("{" + entry() + "}").encode(), bytes(7)),
    "more than it says": packed(("{" + entry() + "}").encode(), bytes(9)),
    "a shape that lies": packed(("{" + entry(shape="[3]") + "}").encode(), bytes(8)),
    "a huge shape": packed(("{" + entry(shape="[4294967296,4294967296]") + "}").encode(), bytes(8)),
    "a huge shape of nothing": packed(("{" + entry(shape="[0,999999999999,999999999999]", end=0) + "}").encode()),
    "a negative shape": packed(("{" + entry(shape="[-2]") + "}").encode(), bytes(8)),
    "a shape of fractions": packed(("{" + entry(shape="[2.0]") + "}").encode(), bytes(8)),
    "a shape of digits": packed(("{" + entry(shape="[" + "9" * 5000 + "]") + "}").encode(), bytes(8)),
    "a shape of 1,000 axes": packed(
        ("{" + entry(shape="[" + ",".join("1" * 1000) + "]", end=4) + "}").encode(), bytes(4)
    ),
    "an unknown dtype": packed(("{" + entry(dtype="F33") + "}").encode(), bytes(8)),
    "a dtype of 1 MB": packed(("{" + entry(dtype="F" * 10**6) + "}").encode(), bytes(8)),
    "no dtype": packed(b'{"a":{"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "two dtypes": packed(("{" + entry()[:-1] + ',"dtype":"F32"}}').encode(), bytes(8)),
    "numbers as a dtype": packed(b'{"a":{"dtype":[1],"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "backwards": packed(("{" + entry(start=8, end=0) + "}").encode(), bytes(8)),
    "200,000 tensors": packed(
        b"{" + b",".join(entry(str(i), shape="[0]", end=0).encode() for i in range(200_000)) + b"}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_header_that_is_none(tmp_path, case):
    (tmp_path / "file").write_bytes(BROKEN[case])
    began = time.process_time()
    with pytest.raises(NextileError, match="is damaged or no safetensors file") as caught:
        load_tensors(tmp_path / "file")
    assert time.process_time() - began < 1.0
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        " { } \n",
        "{" + entry() + "}",
        '{"__metadata__":{"a":"\\u00e4"}, ' + entry() + " } ",
        "{" + entry(shape="[ 1 , 2 ]") + "}",
    ],
)
def test_a_header_that_is_one(tmp_path, text):
    data = packed(text.encode(), bytes(8) if "F32" in text else b"")
    (tmp_path / "file").write_bytes(data)
    if text.startswith("{"):
        assert safetensors.torch.load(data).keys() == load_tensors(tmp_path / "file").keys()
    assert len(load_tensors(tmp_path / "file")) == text.count("F32")


NUMBERS = [b"0", b"1", b"-1", b"4", b"8", b"1e9", b"99999999999999999999", b"18446744073709551615"]
WORDS = [(b"F32", b"I64"), (b"F32", b"F8_E4M3"), (b"dtype", b"shape"), (b"[", b"[["), (b'"', b"\xff"), (b"a", b"b")]


def damaged(text: bytearray, draw: random.Random) -> bytearray:
    """A header with one thing wrong."""
    place = draw.randrange(len(text))
    kind = draw.randrange(6)
    if kind == 0:
        text[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
        text[place : place + draw.randint(0, 20)] = draw.randbytes(draw.randint(0, 20))
    elif kind == 2:  # another number
        spot = draw.choice([i for i, sign in enumerate(text) if 48 <= sign <= 57] or [place])
        text[spot : spot + draw.randint(1, 3)] = draw.choice(NUMBERS)
    elif kind == 3:  # a part of it once more
        other = draw.randrange(len(text))
        text[place:place] = text[other : other + draw.randint(1, 80)]
    elif kind == 4:
        text = bytearray(bytes(text).replace(*draw.choice(WORDS), draw.randint(1, 3)))
    else:
        text[place:place] = draw.choice([b"[", b"{", b'{"a":']) * draw.randint(1, 3000)
    return text or bytearray(b" ")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A file with something wrong in it, mostly in the header; sometimes with nothing wrong that counts."""
    (length,) = struct.unpack("<Q", data[:8])
    text, rest = bytearray(data[8 : 8 + length]), data[8 + length :]
    for _ in range(draw.randint(0, 3)):
        text = damaged(text, draw)
    if draw.random() < 0.2:
        rest = rest[: draw.randrange(len(rest) + 1)] + draw.randbytes(draw.randint(0, 9))
    sizes = [len(text)] * 40 + [0, 1, len(text) - 1, len(text) + 1, 1 << 40, (1 << 64) - 1]
    return struct.pack("<Q", draw.choice(sizes)) + bytes(text) + rest


def outcome_of(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, or None where it is refused, in one line."""
    try:
        return load_tensors(path)
    except NextileError as error:
        assert str(error).isprintable()  # noqa: PT017 nothing but this error may come, and it comes often
        return None


def plainly(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    """Dtype, shape and bytes of each."""
    return {name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()) for name, t in tensors.items()}


def fuzz(folder: Path, number: int) -> tuple[int, int]:
    """How many of so many files are taken and refused; what is taken the library takes too, with the same bytes."""
    draw, path = random.Random(7), folder / "file"
    save_tensors(path, {"a": torch.arange(6.0).view(2, 3), "ab": torch.arange(4), "c.weight": torch.ones(9).half()})
    ours = path.read_bytes()
    plain = safetensors.torch.save({"a": torch.arange(6.0).view(2, 3), "aa": torch.ones(()), "b": torch.ones(0, 2)})
    taken = 0
    for sound in (ours, plain, b""):  # what is imported or cached once is no file's
        path.write_bytes(sound)
        outcome_of(path)
    for _ in range(number):
        data = mutated(draw.choice([ours, plain]), draw)
        path.write_bytes(data)
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.process_time()
        found = outcome_of(path)
        assert tracemalloc.get_traced_memory()[1] - before < 2 * len(data) + BUFFER + 30_000
        assert time.process_time() - began < 1.0
        if found is not None:
            taken += 1
            theirs = safetensors.torch.load(data)
            assert plainly(found) == plainly(theirs)
    return taken, number - taken


@pytest.fixture
def _traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
def test_a_thousand_damaged_files(tmp_path):
    taken, left = fuzz(tmp_path, 1000)
    assert taken > 10
    assert left > 500


@pytest.mark.slow
@pytest.mark.usefixtures("_traced")
def test_ten_thousand_damaged_files(tmp_path):
    taken, left = fuzz(tmp_path, 10_000)
    assert taken > 100
    assert left > 5000


# --- memory, as the system counts it ----------------------------------------------------------------------------------

MEASURE = """
import re, sys
import torch
from nextile.base.errors import NextileError
from nextile.checkpoint.store import load_model
torch.set_num_threads(1)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

load_model(sys.argv[1])
before = peak()
try:
    model, _ = load_model(sys.argv[2])
    with torch.no_grad():
        model(torch.arange(8)[None])
except NextileError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def growth(small: Path, folder: Path) -> int:
    """By how many bytes a process grows that loads the folder, and runs its model, after a small one."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says how much memory a process had at most")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(folder)], capture_output=True, text=True, timeout=50, check=True
    )
    return int(run.stdout)


def test_no_weight_is_held_twice(folder, tmp_path):
    large = tmp_path / "large"
    save_model(large, build(gpt2.spec(vocab=1000, context=32, width=640, depth=6, heads=8)))
    size = (large / "model.safetensors").stat().st_size
    assert size > 100e6
    assert 0.9 * size < growth(folder, large) < 1.2 * size


def test_a_configuration_of_nothing_but_brackets_costs_its_own_size(folder, tmp_path):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "config.json").write_text('{"model_type":[' + "[]," * 15_000_000 + "[]]}")
    assert growth(folder, evil) < 200e6


def test_a_header_of_nothing_but_brackets_costs_its_own_size(folder):
    text = b'{"a":{"dtype":"F32","shape":[' + b"[]," * 15_000_000 + b"]}}"
    evil = folder.parent / "evil"
    evil.mkdir()
    (evil / "config.json").write_bytes((folder / "config.json").read_bytes())
    (evil / "model.safetensors").write_bytes(packed(text))
    assert growth(folder, evil) < 2 * len(text)


def test_shards_are_checked_like_whole_files(folder):
    (folder / "a.safetensors").write_bytes(BROKEN["overlapping"])
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    with pytest.raises(NextileError, match="does not begin where"):
        load_folder(folder)


def test_a_sound_folder_is_loaded(folder):
    assert load_model(folder)[1] == "gpt2"
