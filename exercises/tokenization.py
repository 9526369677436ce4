"""Exercise: a text as bytes, and what a tokenizer costs.

A computer keeps a text as bytes, so that a vocabulary of 256 numbers can spell every text in the world. ByT5 uses them
as tokens, with three special tokens before them: padding 0, end 1, unknown 2, so byte b is token b + 3 (Xue et al.
2021). The price is length: fewer bytes to a token, more tokens to read.

Complete the three functions. Then run this file:

    python exercises/tokenization.py
"""

from checking import case, main, require, same

from nextile.text.characters import byte_tokenizer


def encode(text: str) -> list[int]:
    """The tokens of a text, without an end."""
    raise NotImplementedError("complete `encode` in exercises/tokenization.py")


def decode(ids: list[int]) -> str:
    """The text again; special tokens are left out, and bytes that are no text become the sign �."""
    raise NotImplementedError("complete `decode` in exercises/tokenization.py")


def bytes_per_token(text: str, tokens: int) -> float:
    """How many bytes of the text a token stands for, where so many tokens spell it."""
    raise NotImplementedError("complete `bytes_per_token` in exercises/tokenization.py")


def check() -> None:
    """Compare with the library's byte tokenizer."""
    tokenizer = byte_tokenizer()
    for text in ("bagel", "", "naïve", "日本", "🙂 e\u0301"):
        with case(f"encode {text!r}"):
            same(encode(text), tokenizer.encode(text))
        with case(f"decode the tokens of {text!r}"):
            same(decode(tokenizer.encode(text)), text)
    with case("decode with padding and an end: 0, 100, 1"):
        same(decode([0, 100, 1]), "a")
    with case("decode half of an ï: one byte of its two"):
        found = decode(tokenizer.encode("ï")[:1])
        require(found == "�", f"it is {found!r}")
    with case("bytes_per_token of 'naïve' in 2 tokens: characters are not bytes"):
        same(bytes_per_token("naïve", 2), 3.0)


if __name__ == "__main__":
    main(check)
