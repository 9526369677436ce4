"""SentencePiece models from hand-written messages: what they mean, and every way in which a file can be broken."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import time
from pathlib import Path

import pytest

from nextile.base.errors import NextileError
from nextile.text.sentencepieces import BYTE, CONTROL, LARGEST, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_model
from nextile.text.tokenizer import Tokenizer

# --- a message, as protobuf writes it ------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def piece(text: str, score: float = 0.0, use: int = NORMAL) -> bytes:
    return field(1, field(1, text.encode()) + field(2, score) + field(3, use))


SPECIALS = (piece("<unk>", use=UNKNOWN), piece("<s>", use=CONTROL), piece("</s>", use=CONTROL))
LETTERS = (*(piece(letter, -float(i + 2)) for i, letter in enumerate("▁abc<s>")), piece("ab", -3.0), piece("▁ab", -4.0))
UNIGRAM, BPE = field(2, field(3, 1)), field(2, field(3, 2))
KEPT = field(3, field(4, 0))  # spaces are kept


def folder_of(folder: Path, *parts: bytes, name: str = "tokenizer.model") -> Path:
    (folder / name).write_bytes(b"".join(parts))
    return folder


def loaded(folder: Path, *parts: bytes) -> Tokenizer:
    return Tokenizer.load(folder_of(folder, *parts))


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token(index) for index in tokenizer.encode(text)]


def problem(folder: Path, *parts: bytes) -> str:
    with pytest.raises(NextileError) as caught:
        loaded(folder, *parts)
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- what a model means --------------------------------------------------------------------------------------------


def test_the_best_pieces_are_chosen_and_specials_take_their_roles(tmp_path):
    tokenizer = loaded(tmp_path, *SPECIALS, *LETTERS, UNIGRAM)
    assert tokens(tokenizer, "ab cab") == ["▁ab", "▁", "c", "ab"]
    assert tokens(tokenizer, "a§b") == ["▁", "a", "<unk>", "b"]
    assert (tokenizer.unknown_id, tokenizer.begin_id, tokenizer.end_id, tokenizer.pad_id) == (0, 1, 2, None)
    assert tokenizer.decode(tokenizer.encode("  ab  cab ")) == "ab cab"
    assert tokenizer.kind == "other"


@pytest.mark.parametrize("kind", [UNIGRAM, BPE])
def test_the_name_of_a_special_token_in_a_text_is_text(kind, tmp_path):
    tokenizer = loaded(tmp_path, *SPECIALS, *LETTERS, kind)
    assert tokens(tokenizer, "a<s>b") == ["▁", "a", "<", "s", ">", "b"]
    assert tokens(tokenizer, "a</s>b") == ["▁", "a", "<", "<unk>", "s", ">", "b"]


def test_merges_go_by_the_scores(tmp_path):
    pieces = [piece(text, -float(i)) for i, text in enumerate(("bc", "ab", "abc", "a", "b", "c", "▁"))]
    assert tokens(loaded(tmp_path, *SPECIALS, *pieces, BPE), "abc ab") == ["▁", "abc", "▁", "ab"]
    assert tokens(loaded(tmp_path, *SPECIALS, *pieces[:2], *pieces[3:], BPE), "abc") == ["▁", "a", "bc"]
    assert tokens(loaded(tmp_path, *SPECIALS, *pieces, field(2, field(3, 4))), "abc") == ["▁", "a", "b", "c"]


@pytest.mark.parametrize("kind", [UNIGRAM, BPE])
def test_a_piece_may_have_a_space_within(kind, tmp_path):
    tokenizer = loaded(tmp_path, *SPECIALS, *LETTERS, piece("b▁", -1.5), piece("b▁c", -1.0), kind)
    assert tokens(tokenizer, "ab c") == ["▁", "a", "b▁c"]


def test_spaces_are_kept_where_the_model_says_so(tmp_path):
    tokenizer = loaded(tmp_path, *SPECIALS, *LETTERS, KEPT)
    assert tokens(tokenizer, " a  b ") == ["▁", "▁", "a", "▁", "▁", "b", "▁"]
    assert tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b "
    bare = loaded(tmp_path, *SPECIALS, *LETTERS, field(3, field(3, 0) + field(4, 0)))
    assert tokens(bare, "a b") == ["a", "▁", "b"]
    assert bare.decode(bare.encode(" a")) == " a"


def test_a_character_that_is_no_piece_becomes_bytes(tmp_path):
    all_bytes = [piece(f"<0x{byte:02X}>", use=BYTE) for byte in range(256)]
    for kind in (1, 2):
        tokenizer = loaded(tmp_path, *SPECIALS, *all_bytes, *LETTERS, field(2, field(3, kind) + field(35, 1)))
        assert tokens(tokenizer, "aß") == ["▁", "a", "<0xC3>", "<0x9F>"]
        assert "<0x41>" not in tokens(tokenizer, "<0x41>")
        assert tokenizer.decode(tokenizer.encode("aß 漢<0x41>")) == "aß 漢<0x41>"
        stream = tokenizer.decode_stream()
        pushed = [stream.push(index) for index in tokenizer.encode("ß a")]
        assert ([*pushed, stream.flush()], pushed[2]) == (["", "", "", "ß ", "a", ""], "")
    assert "has not the 256 bytes" in problem(tmp_path, *SPECIALS, *all_bytes[:-1], field(2, field(35, 1)))


def test_a_stream_goes_on_after_bytes_that_are_no_character(tmp_path):
    all_bytes = [piece(f"<0x{byte:02X}>", use=BYTE) for byte in range(256)]
    tokenizer = loaded(tmp_path, *SPECIALS, *all_bytes, *LETTERS, field(2, field(35, 1)))
    ids = [3 + 0x41, 3 + 0xFF, 2, 3 + 0x41, *tokenizer.encode("ab")]
    stream = tokenizer.decode_stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids) == "\ufffd\ufffd\ufffd ab"


def test_symbols_of_the_user_are_found_before_all_else(tmp_path):
    symbol = piece("b c", use=USER_DEFINED), piece("▁▁", use=USER_DEFINED)
    tokenizer = loaded(tmp_path, *SPECIALS, *symbol[1:], piece("cab", use=USER_DEFINED), *LETTERS, BPE, KEPT)
    assert tokens(tokenizer, "acabb  a") == ["▁", "a", "cab", "b", "▁▁", "a"]


def test_pieces_out_of_use_are_never_chosen(tmp_path):
    rest = [part for part in LETTERS if part != LETTERS[-1]]
    for kind in (UNIGRAM, BPE):
        tokenizer = loaded(tmp_path, *SPECIALS, *rest, piece("▁ab", -1.0, UNUSED), kind)
        assert tokens(tokenizer, "ab") == ["▁", "ab"]
        assert tokenizer.decode([tokenizer.vocab_size - 1, *tokenizer.encode("c")]) == "ab c"


def test_a_saved_folder_needs_no_model_any_more(tmp_path):
    tokenizer = loaded(tmp_path, *SPECIALS, *LETTERS)
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert (again.unknown_id, again.begin_id, again.end_id) == (0, 1, 2)
    assert again.config["tokenizer_class"] == "PreTrainedTokenizerFast"


# --- broken files --------------------------------------------------------------------------------------------------

BROKEN = {
    "": "it has not one unknown piece",
    "no protobuf": "it ends too early",
    "four gigabytes claimed": "it ends too early",
    "a number without end": "a number has no end",
    "no text": "a piece has 0 characters",
    "a long text": "a piece has 257 characters",
    "too many controls": "more than 2,048 control pieces",
    "no UTF-8": "can't decode byte 0xff",
    "NaN": "the score of a piece is nan",
    "infinity": "the score of a piece is -inf",
    "twice": "two pieces are the same",
    "two unknowns": "it has not one unknown piece",
    "words": "of this kind (WORD",
    "suffixes": "of this kind (Unigram, or spaces written otherwise)",
    "a number for a map": "a number stands for a text",
    "a text for a kind": "a text stands for a number",
    "a number for a message": "is no SentencePiece model",
    "a map that is cut": "its map of characters is cut",
}


def broken(what: str) -> list[bytes]:
    wholes = {
        "": [],
        "no protobuf": [b"<html>not a model</html>"],
        "four gigabytes claimed": [*SPECIALS, varint(10), varint(2**32), b"x"],
        "a number without end": [*SPECIALS, b"\xff" * 30],
        "no text": [*SPECIALS, piece("")],
        "a long text": [*SPECIALS, piece("x" * 257)],
        "too many controls": [*SPECIALS, *(piece(f"<{i}>", use=CONTROL) for i in range(2047))],
        "no UTF-8": [*SPECIALS, field(1, field(1, b"\xff"))],
        "NaN": [*SPECIALS, piece("x", float("nan"))],
        "infinity": [*SPECIALS, piece("x", float("-inf"))],
        "twice": [*SPECIALS, piece("x"), piece("x")],
        "two unknowns": [*SPECIALS, piece("x", use=UNKNOWN)],
        "words": [*SPECIALS, field(2, field(3, 3))],
        "suffixes": [*SPECIALS, field(2, field(24, 1))],
        "a number for a map": [*SPECIALS, field(3, field(2, 2**50))],
        "a text for a kind": [*SPECIALS, field(1, field(1, b"x") + field(3, b"1"))],
        "a number for a message": [*SPECIALS, field(2, 7)],
        "a map that is cut": [*SPECIALS, *LETTERS, field(3, field(2, struct.pack("<I", 1024) + bytes(1024)))],
    }
    return wholes[what]


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_an_error_in_one_line(what, tmp_path):
    said = problem(tmp_path, *broken(what))
    assert BROKEN[what] in said
    assert said.endswith("get a sound copy of it")


def charsmap(units: list[int], texts: bytes) -> bytes:
    padded = [*units, *[0] * (256 - len(units))]
    return struct.pack("<I", 1024) + struct.pack("<256I", *padded) + texts


@pytest.mark.parametrize(
    ("units", "texts", "said"),
    [
        ([400 << 10], b"x\0", "leads out of itself"),
        ([256 | 1 << 10, 2**31 + 9], b"x\0", "points to no text"),
        ([256 | 1 << 10, 2**31 + 1], "é\0".encode(), "points to no text"),
        ([0], b"x", "is cut"),
        ([0], b"\xff\0", "can't decode"),
    ],
)
def test_a_map_of_characters_that_leads_astray_is_refused(units, texts, said, tmp_path):
    assert said in problem(tmp_path, *SPECIALS, *LETTERS, field(3, field(2, charsmap(units, texts))))


def test_a_sound_map_of_characters_is_used(tmp_path):
    units = [0] * 256
    units[0] = 1 << 10  # the children of the start differ from 1
    units[ord("x") ^ 1] = ord("x") | 256 | 2 << 10
    units[ord("x") ^ 1 ^ 2] = 2**31
    tokenizer = loaded(tmp_path, *SPECIALS, *LETTERS, field(3, field(2, charsmap(units, b"ab\0"))))
    assert tokens(tokenizer, "x c") == ["▁ab", "▁", "c"]


def test_files_that_are_too_large_or_no_files_are_refused_unread(tmp_path):
    with open(tmp_path / "tokenizer.model", "wb") as file:
        file.truncate(LARGEST + 1)
    start = time.process_time()
    assert "more than any vocabulary's" in problem_of(tmp_path)
    assert time.process_time() - start < 1
    (tmp_path / "tokenizer.model").unlink()
    os.mkfifo(tmp_path / "tokenizer.model")
    assert "is not a regular file" in problem_of(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "folder").mkdir()
    folder_of(tmp_path, *SPECIALS, *LETTERS, name="secret")
    (tmp_path / "folder" / "tokenizer.model").symlink_to(tmp_path / "secret")
    assert "is a link that leaves its folder" in problem_of(tmp_path / "folder")


def problem_of(folder: Path) -> str:
    with pytest.raises(NextileError) as caught:
        Tokenizer.load(folder)
    return str(caught.value)


def test_control_characters_of_a_file_never_reach_a_terminal(tmp_path):
    assert problem(tmp_path, *SPECIALS, field(1, field(1, b"\x1b[31m\xff")))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "\x1b[31mX"}))
    assert problem(tmp_path, *SPECIALS, *LETTERS)


def test_a_fuzzed_model_loads_or_is_refused_and_ends_no_process(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    chance, out = random.Random(0), io.BytesIO()
    lines = ("".join(chance.choices(["ab", "cd", " e", "f", " "], k=30)) for _ in range(200))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, vocab_size=30, minloglevel=2, hard_vocab_limit=False, num_threads=1
    )
    sound, loads, refusals = out.getvalue(), 0, []
    start = sound.find(b"nmt_nfkc")
    for turn in range(160):
        data = bytearray(sound[: chance.randrange(len(sound))] if turn % 8 == 0 else sound)
        low, high = [(0, start), (start, start + 400), (start, len(data))][turn % 3]
        for _ in range(chance.choice((1, 3, 200))):
            data[chance.randrange(low, high) % max(1, len(data))] = chance.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(data)
        try:
            tokenizer = Tokenizer.load(tmp_path)
        except NextileError as error:
            refusals.append(str(error))
        else:
            loads += 1
            tokenizer.decode(tokenizer.encode("abcd ﬁ e\u0301 ① \u00a0 ガ ab" + chr(chance.randrange(0x3000))))
    assert 20 < loads < 150
    assert all(map(str.isprintable, refusals))


def test_two_thousand_controls_are_hidden_from_texts(tmp_path):
    many = [piece(f"<{i:x}" + "s" * 200 + f"{i:x}>", use=CONTROL) for i in range(2046)]
    start = time.process_time()
    tokenizer = loaded(tmp_path, *SPECIALS, *many, *LETTERS)
    assert tokenizer.token(2000) not in tokens(tokenizer, f"a{tokenizer.token(2000)}")
    assert time.process_time() - start < 5


def test_a_hundred_thousand_pieces_are_read_in_seconds(tmp_path):
    many = b"".join(piece(f"▁{i:x}", -float(i)) for i in range(100_000))
    start = time.process_time()
    model = read_model(folder_of(tmp_path, *SPECIALS, many), "tokenizer.model")
    assert len(model.pieces) == 100_003
    assert time.process_time() - start < 5
