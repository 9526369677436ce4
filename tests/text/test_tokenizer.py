"""The interface: special tokens, streams, bulk encoding, folders of ours and of others, broken ones."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nextile.base.errors import NextileError
from nextile.text.bpe import train_bpe
from nextile.text.characters import byte_tokenizer, train_characters, train_words
from nextile.text.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. Größe 漢字 👩\u200d👧 " * 3
TRAINED = {
    "bpe": train_bpe([TEXT], 400),
    "byte": byte_tokenizer(),
    "char": train_characters([TEXT]),
    "word": train_words([TEXT], 100),
}
kinds = pytest.mark.parametrize("kind", TRAINED)


def wordpiece() -> tokenizers.Tokenizer:
    """A tokenizer of another family: BERT's, whose decoder looks at the neighbours."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "un": 4, "##known": 5, "word": 6, "##s": 7, ",": 8}
    core = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


# --- special tokens -----------------------------------------------------------------------------------------------


@kinds
def test_text_never_becomes_a_special_token(kind):
    tokenizer = TRAINED[kind]
    names = [tokenizer.token(index) for index in tokenizer.special_ids]
    text = "a ".join(names)
    assert names
    for ids in (tokenizer.encode(text), *(ids.tolist() for ids in tokenizer.encode_documents([text]))):
        assert not tokenizer.special_ids & set(ids) - {tokenizer.unknown_id}


@kinds
def test_special_tokens_are_decoded_when_asked(kind):
    tokenizer = TRAINED[kind]
    ids = [*tokenizer.encode("fox"), tokenizer.end_id]
    shown = tokenizer.decode(ids, skip_special=False)
    assert tokenizer.decode(ids) == shown.removesuffix(tokenizer.token(tokenizer.end_id))
    assert shown.endswith(tokenizer.token(tokenizer.end_id))


def test_token_names_the_range_of_ids():
    with pytest.raises(NextileError, match="token id 259 is not in the vocabulary: the ids go from 0 to 258"):
        TRAINED["byte"].token(259)
    with pytest.raises(NextileError, match="token id -1 "):
        TRAINED["byte"].token(-1)


def test_bytes_of_special_and_unknown_ids_are_none():
    tokenizer = TRAINED["bpe"]
    assert tokenizer.bytes_of(tokenizer.end_id) is None
    assert tokenizer.bytes_of(tokenizer.vocab_size) is None
    assert tokenizer.bytes_of(tokenizer.encode(" the")[0]) is not None


# --- streams ------------------------------------------------------------------------------------------------------


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.decode_stream()
    return [*(stream.push(index) for index in ids), stream.flush()]


@kinds
def test_a_stream_is_decode_piece_by_piece(kind):
    tokenizer = TRAINED[kind]
    pieces = streamed(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 5


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_ids_stream_to_what_they_decode_to(data):
    """Broken UTF-8, special tokens and ids beyond the vocabulary included."""
    tokenizer = TRAINED[data.draw(st.sampled_from(sorted(TRAINED)))]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_is_held_back_until_it_is_whole():
    tokenizer = TRAINED["byte"]
    assert streamed(tokenizer, tokenizer.encode("é漢")) == ["", "é", "", "", "漢", ""]
    assert streamed(tokenizer, tokenizer.encode("漢")[:2]) == ["", "", "\ufffd"]


def test_other_decoders_stream_too():
    tokenizer = Tokenizer(wordpiece(), {"sep_token": "[SEP]", "unk_token": "[UNK]"})
    ids = tokenizer.encode("Unknown words, unknown")
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == "unknown words, unknown"


# --- bulk ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), max_size=6))
def test_documents_get_the_ids_of_encode(texts):
    for tokenizer in TRAINED.values():
        bulk = [ids.tolist() for ids in tokenizer.encode_documents(texts)]
        assert bulk == [tokenizer.encode(text) for text in texts]


@kinds
def test_progress_counts_bytes_over_chunks(kind, monkeypatch):
    monkeypatch.setattr("nextile.text.tokenizer._CHUNK", 10)
    told: list[int] = []
    texts = ["12345678", "é", "漢字漢字", "end"]
    arrays = list(TRAINED[kind].encode_documents(iter(texts), told.append))
    assert told == [10, 22, 25]
    assert [TRAINED[kind].encode(text) for text in texts] == [ids.tolist() for ids in arrays]
    assert all(ids.dtype == np.uint32 for ids in arrays)


@kinds
def test_a_lone_surrogate_is_refused_everywhere(kind):
    for work in (TRAINED[kind].encode, lambda text: list(TRAINED[kind].encode_documents([text]))):
        with pytest.raises(NextileError, match=r"lone surrogate U\+D83D at character 2; replace it with"):
            work("ab\ud83d")


# --- folders ------------------------------------------------------------------------------------------------------


@kinds
def test_a_saved_folder_is_the_same_tokenizer(kind, tmp_path):
    tokenizer = TRAINED[kind]
    tokenizer.save(tmp_path / "new" / "folder")
    again = Tokenizer.load(tmp_path / "new" / "folder")
    names = ("kind", "vocab_size", "end_id", "begin_id", "pad_id", "unknown_id", "special_ids")
    assert [getattr(again, name) for name in names] == [getattr(tokenizer, name) for name in names]
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    again.save(tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "new" / "folder" / name).read_bytes()


def test_fingerprints_differ_where_ids_do():
    assert len({tokenizer.fingerprint() for tokenizer in (*TRAINED.values(), train_characters(["ab"]))}) == 5


def write(folder, core: tokenizers.Tokenizer, **files: object) -> None:
    core.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_roles_are_read_from_either_file_of_a_hugging_face_folder(tmp_path):
    core = wordpiece()
    config = {"pad_token": {"content": "[PAD]", "special": True}, "cls_token": "[CLS]", "unk_token": None}
    write(tmp_path, core, tokenizer_config=config, special_tokens_map={"sep_token": "[SEP]", "unk_token": "[UNK]"})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.kind == "other"
    assert (tokenizer.end_id, tokenizer.begin_id, tokenizer.pad_id, tokenizer.unknown_id) == (3, 2, 0, 1)
    assert tokenizer.special_ids == {0, 1, 2, 3}
    assert tokenizer.bytes_of(6) is None


def test_truncation_padding_and_templates_of_a_folder_are_not_applied(tmp_path):
    core = wordpiece()
    core.enable_truncation(2)
    core.enable_padding(length=9)
    write(tmp_path, core)
    assert Tokenizer.load(tmp_path).encode("word word word") == [6, 6, 6]


def test_an_end_token_is_found_without_a_config(tmp_path):
    write(tmp_path, wordpiece())
    assert Tokenizer.load(tmp_path).end_id == 3


def test_the_rest_of_a_config_is_kept(tmp_path):
    write(tmp_path, wordpiece(), tokenizer_config={"sep_token": "[SEP]", "padding_side": "left"})
    Tokenizer.load(tmp_path).save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["padding_side"] == "left"


# --- broken folders -----------------------------------------------------------------------------------------------


def refusal(folder) -> str:
    with pytest.raises(NextileError) as caught:
        Tokenizer.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    assert "there is no tokenizer.json; is it a model folder?" in refusal(tmp_path)
    assert "there is no tokenizer.json" in refusal(tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}',
        '{"model": {"vocab": {"x": 0, "日": 1}, "merges": [["x", "日"]], "continuing_subword_prefix": "a"}}',
        '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        '{"model": {"type": "Unigram", "vocab": [], "unk_id": 3}}',
        '{"model": {"type": "WordLevel", "vocab": {"a": 99999999999}, "unk_token": "a"}}',
    ],
)
def test_a_broken_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    assert "tokenizer.json is broken (" in refusal(tmp_path)


def test_other_broken_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe")
    assert "tokenizer.json is broken ('utf-8' codec" in refusal(tmp_path)
    path.write_text('{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}')
    assert "tokenizer.json has no tokens" in refusal(tmp_path)
    path.write_text('{"model": {"type": "WordLevel", "vocab": {"a": 2147483648}, "unk_token": "a"}}')
    assert "tokenizer.json has the token id 2147483648, more than any vocabulary's" in refusal(tmp_path)
    path.write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 0}, "unk_token": "a"}}')
    assert "tokenizer.json gives one id to two tokens" in refusal(tmp_path)
    path.write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    assert 'no token ends a text; name one of its tokens as "eos_token"' in refusal(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{nonsense")
    assert "tokenizer_config.json is broken (" in refusal(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    assert "tokenizer_config.json holds no JSON object" in refusal(tmp_path)


def test_a_text_that_cannot_be_expressed_is_refused(tmp_path):
    core = tokenizers.Tokenizer(models.WordLevel(vocab={"a": 0, "</s>": 1}, unk_token="absent"))
    tokenizer = Tokenizer(core, {"eos_token": "</s>"})
    assert tokenizer.encode("a") == [0]
    for work in (tokenizer.encode, lambda text: list(tokenizer.encode_documents([text]))):
        with pytest.raises(NextileError, match=r"cannot encode the text \(.*unknown token"):
            work("b")


def paths(tree: object, path: tuple = ()):
    """Where every value of a JSON tree stands."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


def replaced(tree, path: tuple, value: object):
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


@kinds
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_hostile_file_never_gives_a_traceback(kind, name, tmp_path):
    TRAINED[kind].save(tmp_path)
    path = tmp_path / name
    whole = path.read_text(encoding="utf-8")
    tree, rng = json.loads(whole), random.Random(0)
    shallow = [place for place in paths(tree) if len(place) < 3 or rng.random() < 0.1]
    values = [None, -1, 0, 2**31, 2**40, "", "x", "<|endoftext|>", [], ["x"], {}, {"type": "Fuse"}, True, 0.5]
    hostile = [json.dumps(replaced(tree, rng.choice(shallow), rng.choice(values))) for _ in range(250)]
    hostile += [whole[: rng.randrange(len(whole))] for _ in range(50)]
    messages = []
    for content in hostile:
        path.write_text(content, encoding="utf-8")
        try:
            tokenizer = Tokenizer.load(tmp_path)
            ids = list(tokenizer.encode_documents(["The fox é"]))
            "".join(streamed(tokenizer, ids[0].tolist()))
        except NextileError as error:
            messages.append(str(error))
    assert 0 < len(messages) < len(hostile)
    assert not any("\n" in message for message in messages)


def test_text_needs_no_torch():
    code = "import sys, nextile.text.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
