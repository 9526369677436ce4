"""Folders without a tokenizer.json give the ids of SentencePiece itself, or of transformers' own tokenizers."""

from __future__ import annotations

import functools
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from nextile.text.bpe import train_bpe
from nextile.text.masks import sentinels_of
from nextile.text.sentencepieces import build, read_marian, read_model
from nextile.text.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = [
    "the",
    "a",
    "small",
    "green",
    "frog",
    "sings",
    "loudly",
    "near",
    "river",
    "stones",
    "while",
    "old",
    "birds",
    "listen",
    "carefully",
    "under",
    "bright",
    "evening",
    "skies",
    "Größe",
    "Übung",
    "schöne",
    "Straße",
    "déjà",
    "naïve",
    "façade",
    "élève",
    "привет",
    "мир",
    "большой",
    "дом",
    "漢字",
    "東京",
    "日本語",
    "ガラス",
    "안녕",
    "세계",
    "unbelievable",
    "antidisestablishment",
    ",",
    ".",
    "!",
    "?",
    "1",
    "23",
    "456",
    "(brackets)",
    '"quotes"',
    "it's",
]
SYLLABLES = [
    a + b for a in ("st", "r", "b", "kl", "m", "th", "d", "gr", "w") for b in ("a", "en", "io", "ur", "eß", "ick")
]
TEXTS = (
    "", " ", "   ", "a", " a", "a ", "  two   spaces  at the   ends  ", "\ttab\tand\nnew\r\nlines\n", "\n", "\n\n\n",
    "the small green frog sings loudly", "unbelievable antidisestablishment bird's listening",
    "Größe und Übung", "Gro\u0308\u00dfe und U\u0308bung", "déjà de\u0301ja\u0300", "привет мир", "漢字と東京 日本語",
    "ﾊﾝｶｸ ｶﾞﾗｽ", "カ\u3099ラス", "안녕 세계", "안녕", "👩\u200d👧 ❤️ 🇩🇪 😀😀", "ﬁne ① ½ ™ ａｂｃ",
    "x\u00a0y\u3000z", "▁", "a▁b ▁ c",
    "▁▁ a ▁▁", "<s>", "</s> text </s>", "<unk><pad>", "<0x41>", "<0x0A> the <0xFF>", "<s", "s>", "\u200b\ufeff",
    "\x00\x01\x7f",
    "zz qq @@ ## §§", "a" * 300, "the " * 100, "مرحبا بالعالم", "हिन्दी भाषा", "\U000e0001\U0010ffff",
)  # fmt: skip


@functools.cache
def lines(seed: int = 0) -> tuple[str, ...]:
    chance = random.Random(seed)
    made = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(300)]
    return tuple(" ".join(chance.choices([*WORDS * 2, *made], k=chance.randint(3, 9))) for _ in range(400))


@functools.cache
def trained(kind: str, size: int = 260, seed: int = 0, **options: object) -> bytes:
    """A SentencePiece model of the lines."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines(seed)), model_writer=out, model_type=kind, vocab_size=size, minloglevel=2,
        hard_vocab_limit=False, num_threads=1, **options,
    )  # fmt: skip
    return out.getvalue()


def library(data: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def folder_of(folder: Path, files: dict[str, bytes | str], **config: object) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def hostile_texts(count: int = 200) -> list[str]:
    """The texts above, and mixtures of words, of parts of words, of white space and of signs."""
    chance = random.Random(1)
    parts = [*WORDS, *TEXTS[:30], " ", "  ", "\n", "\t", "▁", "<", ">", "é", "e\u0301", "ß", "😀", "zz", "東", "\u00a0"]
    mixed = ("".join(chance.choices(parts, k=chance.randint(1, 8))) for _ in range(count))
    return [*TEXTS, *mixed]


# --- SentencePiece -------------------------------------------------------------------------------------------------

LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MODELS = {
    "T5": ("unigram", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "Llama": ("bpe", {"size": 500, **LLAMA}),
    "Gemma": ("bpe", {
        "size": 500, "add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "bos_piece": "<bos>", "eos_piece": "<eos>", "user_defined_symbols": "▁▁,\n\n,<table>", **LLAMA,
    }),
    "unigram with bytes": ("unigram", {"size": 500, "byte_fallback": True}),
    "unigram as it is": ("unigram", {"size": 400, **LLAMA, "byte_fallback": False, "add_dummy_prefix": False}),
    "BPE without bytes": ("bpe", {}),
    "BPE over words": ("bpe", {"split_by_whitespace": False}),
    "unigram over words": ("unigram", {"split_by_whitespace": False}),
    "characters": ("char", {}),
    "NFKC with folded cases": ("unigram", {"normalization_rule_name": "nmt_nfkc_cf"}),
}  # fmt: skip


def pair(name: str, folder: Path) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    kind, options = MODELS[name]
    data = trained(kind, **options)
    return Tokenizer.load(folder_of(folder, {"tokenizer.model": data})), library(data)


@pytest.mark.parametrize("name", MODELS)
def test_the_ids_and_the_texts_are_those_of_sentencepiece(name, tmp_path):
    ours, theirs = pair(name, tmp_path)
    for text in hostile_texts():
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, (text, theirs.encode(text, out_type=str), ours.core.encode(text).tokens)
        assert ours.decode(ids) == theirs.decode([i for i in ids if i != theirs.unk_id()])
    assert [ids.tolist() for ids in ours.encode_documents(TEXTS)] == theirs.encode(list(TEXTS))


@pytest.mark.parametrize(
    "change",
    [
        {"prefix": False}, {"squeeze": False}, {"charsmap": b""},
        {"pieces": lambda pieces: tuple(replace(piece, score=-float(len(piece.text) ** 3)) for piece in pieces)},
    ],
)  # fmt: skip
def test_a_model_that_is_read_wrongly_gives_other_ids(change, tmp_path):
    data = trained("unigram", **MODELS["T5"][1])
    model = read_model(folder_of(tmp_path, {"spiece.model": data}), "spiece.model")
    changed = {name: value(model.pieces) if callable(value) else value for name, value in change.items()}
    theirs = [library(data).encode(text) for text in TEXTS]
    for found, right in ((model, True), (replace(model, **changed), False)):
        core = build(found)
        core.encode_special_tokens = True
        assert ([core.encode(text).ids for text in TEXTS] == theirs) is right


@pytest.mark.parametrize("name", MODELS)
def test_saved_again_transformers_gives_the_same_ids(name, tmp_path):
    ours, theirs = pair(name, tmp_path)
    ours.save(tmp_path / "saved")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [text for text in hostile_texts(50) if not any(ours.token(i) in text for i in ours.special_ids)]
    assert len(texts) > 60
    for text in texts:  # there, specials are read from the text
        assert loaded.encode(text, add_special_tokens=False) == theirs.encode(text)
    assert Tokenizer.load(tmp_path / "saved").fingerprint() == ours.fingerprint()


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_of_pieces_is_what_they_decode_to(name, tmp_path):
    ours, _ = pair(name, tmp_path)
    chance = random.Random(2)
    drawn = [[chance.randrange(ours.vocab_size) for _ in range(12)] for _ in range(60)]
    for ids in [*map(ours.encode, TEXTS), *drawn]:
        stream = ours.decode_stream()
        assert "".join([*(stream.push(index) for index in ids), stream.flush()]) == ours.decode(ids)


def test_the_sentinels_of_t5_go_down_from_the_end(tmp_path):
    data = trained("unigram", **MODELS["T5"][1])
    size = library(data).get_piece_size()
    ours = Tokenizer.load(folder_of(tmp_path, {"spiece.model": data}, tokenizer_class="T5Tokenizer"))
    assert ours.vocab_size == size + 100
    assert (ours.token(size), ours.token(size + 99)) == ("<extra_id_99>", "<extra_id_0>")
    assert sentinels_of(ours) == tuple(range(size + 99, size - 1, -1))
    assert (ours.pad_id, ours.end_id, ours.unknown_id, ours.begin_id) == (0, 1, 2, None)
    few = Tokenizer.load(folder_of(tmp_path, {}, tokenizer_class="T5TokenizerFast", extra_ids=3))
    assert few.vocab_size == size + 3
    plain = transformers.T5Tokenizer(vocab=[(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")])
    assert {f"<extra_id_{i}>" for i in range(100)} <= plain.get_vocab().keys()


def test_xlm_r_has_its_specials_first_and_all_pieces_one_later(tmp_path):
    data = trained("unigram")
    theirs = library(data)
    ours = Tokenizer.load(folder_of(tmp_path, {"sentencepiece.bpe.model": data}))
    for text in hostile_texts(100):
        assert ours.encode(text) == [3 if index == 0 else index + 1 for index in theirs.encode(text)]
    assert [ours.token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert ours.mask_id == ours.vocab_size - 1 == theirs.get_piece_size() + 1
    framed = ours.core.encode("the").ids
    assert (framed[0], framed[-1]) == (0, 2)


# --- Marian --------------------------------------------------------------------------------------------------------


def marian(folder: Path, source: bytes, target: bytes) -> transformers.MarianTokenizer:
    """A folder whose vocab.json has the pieces of both, mixed."""
    models = map(library, (source, target))
    pieces = {model.id_to_piece(i) for model in models for i in range(3, model.get_piece_size())}
    texts = ["</s>", "<unk>", ">>deu<<", *sorted(pieces), "<pad>"]
    vocabulary = json.dumps({text: index for index, text in enumerate(texts)})
    folder_of(folder, {"source.spm": source, "target.spm": target, "vocab.json": vocabulary})
    return transformers.MarianTokenizer.from_pretrained(folder)


def test_a_source_of_marian_has_the_ids_of_its_tokenizer_and_a_target_its_text(tmp_path):
    source, target = trained("unigram", 200), trained("unigram", 320, seed=1, character_coverage=1.0)
    theirs, ours = marian(tmp_path, source, target), Tokenizer.load(tmp_path)
    assert (ours.end_id, ours.unknown_id, ours.pad_id) == (0, 1, ours.vocab_size - 1)
    known = library(source)
    texts = [text for text in hostile_texts() if known.unk_id() not in known.encode(text)]
    assert len(texts) > 60
    for text in [*texts, ">>deu<< the small frog", "zz the", "§"]:  # the last two unknown to both
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        ids = theirs(text_target=text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True).replace("⁇", "").strip()
    targets = [theirs(text_target=text, add_special_tokens=False)["input_ids"] for text in texts]
    assert targets != [ours.encode(text) for text in texts]  # which only target.spm gives
    core = build(read_marian(tmp_path, "target"))
    assert targets == [core.encode(text, add_special_tokens=False).ids for text in texts]


def test_a_joint_model_of_marian_encodes_targets_as_well(tmp_path):
    data = trained("unigram")
    theirs, ours = marian(tmp_path, data, data), Tokenizer.load(tmp_path)
    for text in lines()[:50]:
        assert ours.encode(text) == theirs(text_target=text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ours.encode(text)) == text


def test_what_only_the_target_knows_is_never_chosen_for_a_source(tmp_path):
    source, target = trained("unigram", 200), trained("unigram", 320, seed=1)
    marian(tmp_path, source, target)
    ours = Tokenizer.load(tmp_path)
    own = {library(source).id_to_piece(i) for i in range(library(source).get_piece_size())}
    chosen = {ours.token(index) for text in hostile_texts() for index in ours.encode(text)}
    assert chosen <= own | {">>deu<<"}
    assert len(chosen) > 100


# --- merges, words, bytes -------------------------------------------------------------------------------------------


def merged(folder: Path, *specials: str) -> Path:
    """A vocab.json and a merges.txt, with specials behind."""
    model = json.loads(train_bpe(lines(), 600).core.to_str())["model"]
    vocabulary = dict(model["vocab"])
    vocabulary.update({text: len(vocabulary) + i for i, text in enumerate(specials)})
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    return folder_of(folder, {"vocab.json": json.dumps(vocabulary), "merges.txt": f"#version: 0.2\n{merges}"})


@pytest.mark.parametrize(
    ("kind", "specials"),
    [("GPT2Tokenizer", ()), ("RobertaTokenizer", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))],
)
def test_byte_level_merges_give_the_ids_of_transformers(kind, specials, tmp_path):
    folder = merged(tmp_path, *specials)
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    for prefix in (False, True):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "add_prefix_space": prefix}))
        theirs = getattr(transformers, kind).from_pretrained(folder)
        ours = Tokenizer.load(folder)
        assert (ours.kind, ours.vocab_size) == ("bpe", len(json.loads(Path(files["vocab"]).read_text())))
        for text in no_specials(ours, hostile_texts(100)):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.core.encode("the frog").ids == theirs.encode("the frog")
        assert ours.end_id == theirs.eos_token_id
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert Tokenizer.load(folder).encode("the frog") != ours.encode("the frog")  # so it is the merges that do it


def no_specials(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """The texts in which other programs find no special token."""
    return [text for text in texts if not any(tokenizer.token(index) in text for index in tokenizer.special_ids)]


@pytest.mark.parametrize(
    "config", [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}, {"strip_accents": False}]
)
def test_wordpieces_give_the_ids_of_transformers(config, tmp_path):
    words = sorted({piece for word in WORDS for piece in (word, word.lower(), f"##{word[-2:]}", *word)})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = "".join(f"{token}\n" for token in dict.fromkeys(tokens))
    folder_of(tmp_path, {"vocab.txt": vocabulary}, tokenizer_class="BertTokenizer", **config)
    theirs, ours = transformers.BertTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in no_specials(ours, hostile_texts(100)):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)
    assert ours.core.encode("the frog").ids == theirs.encode("the frog")
    roles = (ours.pad_id, ours.unknown_id, ours.begin_id, ours.end_id, ours.mask_id)
    assert roles == (0, 1, 2, 3, 4)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": bool(config)}))
    assert any(Tokenizer.load(tmp_path).encode(t) != ours.encode(t) for t in TEXTS) or config.keys() - {"do_lower_case"}


def test_byt5_needs_no_file_but_its_config(tmp_path):
    folder_of(tmp_path, {}, tokenizer_class="ByT5Tokenizer")
    theirs, ours = transformers.ByT5Tokenizer(), Tokenizer.load(tmp_path)
    assert ours.kind == "byte"
    assert ours.vocab_size == 259 + 125
    for text in no_specials(ours, hostile_texts(100)):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False) == [b + 3 for b in text.encode()]
    assert sentinels_of(ours) == tuple(theirs.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(125)]))
    assert (ours.pad_id, ours.end_id, ours.unknown_id) == (0, 1, 2)
