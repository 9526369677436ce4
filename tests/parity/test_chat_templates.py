"""Chat templates against transformers: the same text, the same ids and the same answers, for templates of five styles.

The templates are written here in the manner of well-known models; every comparison has beside it a case that it must
tell apart.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from nextile.text.bpe import train_bpe
from nextile.text.chat import Chat, Message, render, specials
from nextile.text.tokenizer import Tokenizer

TEXT = "user assistant system: hello, how are you? I am well, thank you. What is 2 + 2? It is 4. Größe é\n" * 5

CHATML = """\
{% if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nYou answer briefly.<|im_end|>\n' }}
{%- endif %}
{% for message in messages %}
{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>' ~ '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
INSTRUCT = """\
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content ~ '\n\n' %}{% endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}{{ raise_exception('only the first message may be of the system') }}{% endif %}
        {%- continue %}
    {%- elif message.role == 'user' %}
        {{- '[INST] ' + ns.system + message.content + ' [/INST]' }}{% set ns.system = '' %}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
TURNS = """\
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
LABELS = """\
{% for message in messages %}
<|{{ message['role'] }}|>
{{ message['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""
STYLES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "headers": (HEADERS, ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "instruct": (INSTRUCT, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
    "turns": (TURNS, ["<s>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "labels": (LABELS, ["</s>", "<|user|>", "<|assistant|>", "<|system|>"], "</s>"),
}
styles = pytest.mark.parametrize("style", STYLES)

CONVERSATIONS = [
    [Message("user", "hello, how are you?")],
    [Message("system", "I am well."), Message("user", " hello \n\n"), Message("assistant", "\nWhat is 2 + 2?")],
    [
        Message("user", "é漢字👩\u200d👧"),
        Message("assistant", "It is 4.  "),
        Message("user", "2"),
        Message("assistant", ""),
    ],
]


def byte_level(tokens: list[str], end: str) -> Tokenizer:
    """A tokenizer like GPT-2's or Llama 3's."""
    core = train_bpe([TEXT], 500).core
    core.add_special_tokens(tokens)
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": end})


def sentence_pieces(tokens: list[str], end: str) -> Tokenizer:
    """A tokenizer like Llama 2's or Mistral's: spaces are a character, and one stands before a text, not in it."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *tokens, *bytes_], show_progress=False)
    core.train_from_iterator([TEXT], trainer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": end, "unk_token": "<unk>"}
    return Tokenizer(core, config)


def both(style: str, folder: Path, make=byte_level):
    """Our chat, and their tokenizer, from one folder."""
    template, tokens, end = STYLES[style]
    tokenizer = make(tokens, end)
    tokenizer.chat_template = template
    tokenizer.save(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.chat_template == template
    return Chat(Tokenizer.load(folder)), theirs


def plain(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


@styles
@pytest.mark.parametrize("prompt", [False, True])
def test_the_text_is_transformers(style, prompt, tmp_path):
    ours, theirs = both(style, tmp_path)
    for messages in CONVERSATIONS:
        text = render(ours.template, messages, specials=specials(ours.tokenizer), add_generation_prompt=prompt)
        asked = {"tokenize": False, "add_generation_prompt": prompt}
        assert text == theirs.apply_chat_template(plain(messages), **asked)
        assert messages[-1].content.strip() in text


@styles
@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
def test_the_ids_are_transformers(style, make, tmp_path):
    ours, theirs = both(style, tmp_path, make)
    for messages, example in zip(CONVERSATIONS, ours.examples(CONVERSATIONS), strict=True):
        assert example.ids.tolist() == theirs.apply_chat_template(plain(messages))["input_ids"]
        asked = theirs.apply_chat_template(plain(messages), add_generation_prompt=True)
        assert ours.prompt(messages) == asked["input_ids"]
        assert set(example.ids.tolist()) & ours.tokenizer.special_ids - {ours.tokenizer.unknown_id}


@styles
def test_the_answers_are_told_from_the_rest(style, tmp_path):
    ours, theirs = both(style, tmp_path)
    [_, second, third] = ours.examples(CONVERSATIONS)
    end = STYLES[style][2]
    said = [text.strip() for text in theirs.decode(second.ids[second.answers]).split(end)]
    assert said == ["What is 2 + 2?", ""]
    said = [text.strip() for text in theirs.decode(third.ids[third.answers]).split(end)]
    assert said == ["It is 4.", "", ""]
    assert ours.ends == {theirs.eos_token_id}


BLOCKS = CHATML.replace(
    "{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>' ~ '\n' }}",
    "{{- '<|im_start|>' ~ message['role'] ~ '\n' }}{% if message.role == 'assistant' %}"
    "{%- generation %}{{- message['content'] ~ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{- message['content'] ~ '<|im_end|>' }}{% endif %}{{- '\n' }}",
)


def test_the_answers_of_generation_blocks_are_transformers(tmp_path):
    ours, theirs = both("chatml", tmp_path)
    assert "generation %}" in BLOCKS
    marked = Chat(ours.tokenizer, BLOCKS)
    for messages, found, unmarked in zip(
        CONVERSATIONS, marked.examples(CONVERSATIONS), ours.examples(CONVERSATIONS), strict=True
    ):
        asked = {"chat_template": BLOCKS, "return_dict": True, "return_assistant_tokens_mask": True}
        their = theirs.apply_chat_template(plain(messages), **asked)
        assert found.ids.tolist() == their["input_ids"]
        assert found.answers.tolist() == their["assistant_masks"]
        assert (found.answers == unmarked.answers).all()


def test_what_people_write_would_be_seen(tmp_path):
    """The one place where we differ: to transformers the text of a special token is the token, whoever wrote it."""
    ours, theirs = both("chatml", tmp_path)
    messages = [Message("user", "a<|im_end|>")]
    [example] = ours.examples([messages])
    their = theirs.apply_chat_template(plain(messages))["input_ids"]
    assert example.ids.tolist() != their
    assert their.count(theirs.eos_token_id) == example.ids.tolist().count(theirs.eos_token_id) + 1


@styles
def test_another_template_would_be_seen(style, tmp_path):
    ours, theirs = both(style, tmp_path)
    other = Chat(ours.tokenizer, ours.template + "{{ ' ' }}")
    [example] = other.examples([CONVERSATIONS[0]])
    assert example.ids.tolist() != theirs.apply_chat_template(plain(CONVERSATIONS[0]))["input_ids"]
