"""Text as UTF-8 bytes, and bytes as the printable characters that stand for them in a tokenizer.json."""

from __future__ import annotations

from nextile.base.errors import NextileError

# A tokenizer.json holds text, so GPT-2 (Radford et al. 2019) gave every byte a printable character: the printable ones
# of Latin-1 stand for themselves, the other 68 bytes take U+0100 onwards. A space is written Ġ, a newline Ċ.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

# The order of the table is that of the characters, which is the order in which `tokenizers` numbers the bytes.
CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
BYTE = {character: byte for byte, character in CHARACTER.items()}


def utf8(text: str) -> bytes:
    """The bytes of `text`.

    Errors: NextileError for a lone surrogate, half of a UTF-16 pair, which is no text: what replaced it silently would
    not decode to what was encoded.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise NextileError(
            f"the text is not Unicode: a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}; "
            "replace it with text.encode(errors='replace').decode()"
        ) from None


def printable(data: bytes) -> str:
    """How `data` is written in a byte-level tokenizer.json: b" hi" -> "Ġhi"."""
    return "".join(CHARACTER[byte] for byte in data)


def raw(token: str) -> bytes:
    """The bytes that `token` stands for; one with a character outside the table (an added token) stands for itself."""
    if all(character in BYTE for character in token):
        return bytes(BYTE[character] for character in token)
    return token.encode()
