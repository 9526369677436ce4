"""Folders without a tokenizer.json: which files are taken, what a config adds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import load_processor
from nextile.text.characters import byte_tokenizer
from nextile.text.legacy import FILES, has_text
from nextile.text.tokenizer import Tokenizer

MERGES = {"vocab.json": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "<|endoftext|>": 5}, "merges.txt": "a b\nĠ ab\n"}
WORDS = {"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nab\n##b\na\nA\n"}


def write(folder: Path, files: dict[str, object], **config: object) -> Path:
    for name, content in (files | ({"tokenizer_config.json": config} if config else {})).items():
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def problem(folder: Path, files: dict[str, object], **config: object) -> str:
    with pytest.raises(NextileError) as caught:
        Tokenizer.load(write(folder, files, **config))
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- which files ---------------------------------------------------------------------------------------------------


def test_merges_and_words_are_read_by_their_files_alone(tmp_path):
    merged = Tokenizer.load(write(tmp_path, MERGES))
    assert merged.encode("ab ab") == [2, 4]
    assert (merged.kind, merged.end_id, merged.decode([2, 4])) == ("bpe", 5, "ab ab")
    (tmp_path / "words").mkdir()
    words = Tokenizer.load(write(tmp_path / "words", WORDS))
    assert words.encode("AB abb A zz") == [5, 5, 6, 7, 1]
    assert words.decode(words.encode("abb a")) == "abb a"


def test_a_tokenizer_json_wins_over_all_others(tmp_path):
    byte_tokenizer().save(tmp_path)
    write(tmp_path, MERGES)
    assert Tokenizer.load(tmp_path).kind == "byte"


def test_a_folder_without_any_is_refused(tmp_path):
    assert "there is no tokenizer.json; is it a model folder?" in problem(tmp_path, {})
    assert "there is no tokenizer.json" in problem(tmp_path, {"vocab.json": {"a": 0}})


@pytest.mark.parametrize("name", [name for name in FILES if name != "tokenizer.json"])
def test_a_folder_of_text_is_not_taken_for_one_of_pictures(name, tmp_path):
    write(tmp_path, {"preprocessor_config.json": {}})
    assert not has_text(tmp_path)
    write(tmp_path, {name: ""})
    assert has_text(tmp_path)
    with pytest.raises(NextileError, match=r"SentencePiece|vocab|tokenizer\.json"):
        load_processor(tmp_path)


def test_a_folder_of_bytes_is_one_of_text(tmp_path):
    assert not has_text(write(tmp_path, {"preprocessor_config.json": {}}, tokenizer_class="T5Tokenizer"))
    assert has_text(write(tmp_path, {}, tokenizer_class="ByT5Tokenizer"))
    assert load_processor(tmp_path).encode("a") == [100]


def test_the_class_says_how_and_the_model_type_where_there_is_none(tmp_path):
    write(tmp_path, {"config.json": {"model_type": "byt5"}})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 259 + 125
    assert tokenizer.encode("é") == byte_tokenizer().encode("é")
    assert Tokenizer.load(write(tmp_path, {}, extra_ids=0)).vocab_size == 259


@pytest.mark.parametrize("files", [MERGES, WORDS, {"tokenizer.model": ""}, {"source.spm": ""}])
def test_a_class_that_gives_ids_otherwise_is_refused(files, tmp_path):
    said = problem(tmp_path, files, tokenizer_class="CLIPTokenizerFast")
    assert said.startswith("how 'CLIPTokenizer' gives ids is not known")
    assert said.endswith("AutoTokenizer.from_pretrained(...).save_pretrained(...)")


# --- what a config adds --------------------------------------------------------------------------------------------


def test_added_tokens_stand_behind_the_vocabulary(tmp_path):
    added = {"6": {"content": "<chat>", "special": True}, "7": {"content": "<tool>", "special": False}}
    tokenizer = Tokenizer.load(write(tmp_path, MERGES, added_tokens_decoder=added, pad_token="<chat>"))
    assert (tokenizer.token(6), tokenizer.token(7), tokenizer.pad_id) == ("<chat>", "<tool>", 6)
    assert tokenizer.special_ids == {5, 6}
    assert tokenizer.encode("a<tool>b") == [0, 7, 1]
    plain = Tokenizer.load(write(tmp_path, {"added_tokens.json": {"<chat>": 6}}, pad_token="<chat>"))
    assert (plain.token(6), plain.special_ids) == ("<chat>", {5, 6})


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"7": {"content": "x"}}, "'x' of .* cannot have the id 7"),
        ({"0": {"content": "x"}}, "cannot have the id 0"),
        ({"6": {"content": "a"}}, "cannot have the id 6"),
        ({"-1": {"content": "x"}}, "cannot have the id -1"),
        ({str(10**30): {"content": "x"}}, "cannot have the id 1000"),
        ({"x": {"content": "x"}}, "are none"),
        ({"6": "x"}, "are none"),
        ({"6": {"content": 7}}, "are none"),
        ({"6": {"content": "x", "lstrip": "often"}}, "are none"),
        ([1], "are none"),
    ],
)
def test_added_tokens_that_cannot_be_are_refused(added, said, tmp_path):
    with pytest.raises(NextileError, match=said) as caught:
        Tokenizer.load(write(tmp_path, MERGES, added_tokens_decoder=added))
    assert str(caught.value).isprintable()


def test_other_programs_are_told_what_stands_around_a_text(tmp_path):
    words = Tokenizer.load(write(tmp_path, WORDS, tokenizer_class="BertTokenizer"))
    assert words.core.encode("ab").ids == [2, 5, 3]
    assert words.encode("ab") == [5]
    (tmp_path / "merges").mkdir()
    merged = Tokenizer.load(write(tmp_path / "merges", MERGES, add_bos_token=True, add_eos_token=True))
    assert merged.core.encode("ab").ids == [5, 2, 5]


# --- broken files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("merges.txt", "a b\nb a\n", "line 2 of .* merges no two tokens into one"),
        ("merges.txt", "a b\nab\n", "line 2 of .* merges no two"),
        ("merges.txt", "a  b\n", "line 1 of .* merges no two"),
        ("merges.txt", "x" * 10**6, "line 1 of .* merges no two"),
        ("merges.txt", b"\xff", "is not UTF-8"),
        ("vocab.json", {"a": 0, "b": 0}, "are not 0 to 1, each once"),
        ("vocab.json", {"a": 0, "b": 10**12}, "are not 0 to 1, each once"),
        ("vocab.json", {"a": -1}, "are not 0 to 0"),
        ("vocab.json", {"a": 0.5}, "holds no ids of tokens"),
        ("vocab.json", {"a": True}, "holds no ids of tokens"),
        ("vocab.json", [], "holds no ids of tokens"),
        ("vocab.json", {}, "holds no ids of tokens"),
        ("vocab.json", "[" * 100_000, "holds no ids of tokens"),
        ("config.json", "[]", "holds no JSON object"),
        ("tokenizer_config.json", {"add_prefix_space": "\x1b"}, "write true or false"),
        ("tokenizer_config.json", {"add_bos_token": 1}, "write true or false"),
    ],
)
def test_broken_merges_are_an_error_in_one_line(name, content, said, tmp_path):
    with pytest.raises(NextileError, match=said) as caught:
        Tokenizer.load(write(tmp_path, MERGES | {name: content}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "config", "said"),
    [
        ("[UNK]\na\na\n", {}, "has a token twice, or no unknown one"),
        ("a\nb\n", {}, "has a token twice, or no unknown one"),
        ("", {}, "has a token twice, or no unknown one"),
        (b"\xff\n", {}, "is not UTF-8"),
        (WORDS["vocab.txt"], {"do_lower_case": "yes"}, '"do_lower_case" is .* write true or false'),
        (WORDS["vocab.txt"], {"unk_token": {"content": [1]}}, "no unknown one"),
        ("[UNK]\na\n", {}, "no token ends a text"),
    ],
)
def test_broken_words_are_an_error_in_one_line(content, config, said, tmp_path):
    with pytest.raises(NextileError, match=said):
        Tokenizer.load(write(tmp_path, {"vocab.txt": content}, **config))


@pytest.mark.parametrize("count", [-1, 10**9, "many", 1.5, True])
def test_a_number_of_sentinels_that_is_none_is_refused(count, tmp_path):
    assert '"extra_ids" is' in problem(tmp_path, {}, tokenizer_class="ByT5Tokenizer", extra_ids=count)


def test_an_id_of_a_marian_folder_without_its_token_is_refused(tmp_path):
    unknown = b"\x0a\x09\x0a\x05<unk>\x18\x02"
    assert "no <unk>" in problem(tmp_path, {"source.spm": unknown, "vocab.json": {"a": 0}})
    assert "each once" in problem(tmp_path, {"vocab.json": {"<unk>": 0, "</s>": 2}})
    assert "other ids for its targets" in problem(tmp_path, {"target_vocab.json": {}})
