"""The real `openai` client against a server, as its users write."""

from typing import Any

import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="the client of OpenAI's protocol: pip install openai")


def client(running: Any, key: str = "any", **settings: Any) -> Any:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, **settings)


@pytest.fixture(scope="module")
def ai(talker):
    with client(talker) as found:
        yield found


def test_it_lists_the_model(ai):
    assert [each.id for each in ai.models.list()] == ["tiny"]
    assert ai.models.retrieve("tiny").owned_by == "nextile"


def test_it_completes(ai, talker):
    found = ai.completions.create(model="tiny", prompt="ab", max_tokens=20, seed=1, temperature=0.7, n=2, logprobs=3)
    assert [each.text for each in found.choices] == talker.model.generate(
        "ab", max_tokens=20, seed=1, temperature=0.7, n=2
    )
    assert len(found.choices[0].logprobs.top_logprobs[0]) in (3, 4)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_it_streams_completions(ai, talker):
    stream = ai.completions.create(
        model="tiny", prompt="ab", max_tokens=20, seed=1, temperature=0.7, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    parts = list(stream)
    text = "".join(choice.text for part in parts for choice in part.choices)
    assert text == talker.model.generate("ab", max_tokens=20, seed=1, temperature=0.7)
    assert parts[-1].usage.completion_tokens > 0


def test_it_talks(ai):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 1}
    whole = ai.chat.completions.create(**asked, logprobs=True, top_logprobs=5)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 5
    parts = list(ai.chat.completions.create(**asked, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_it_embeds(ai, talker):
    texts = ["Hello", "there"]
    found = ai.embeddings.create(model="tiny", input=texts)  # the client asks for base64 by itself
    vectors = np.array([each.embedding for each in found.data])
    assert vectors == pytest.approx(talker.model.embed(texts), abs=1e-5)
    plain = ai.embeddings.create(model="tiny", input=texts, encoding_format="float")
    assert np.array([each.embedding for each in plain.data]) == pytest.approx(vectors, abs=1e-6)


def test_its_errors_are_those_that_it_knows(ai, talker, serving):
    with pytest.raises(openai.BadRequestError, match="less than or equal to 128") as error:
        ai.completions.create(model="tiny", prompt="a", n=1000)
    assert (error.value.param, error.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        ai.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="call no tools"):
        ai.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "f"}}],
        )  # fmt: skip
    with serving(talker.model, key="secret") as running:
        with client(running, "wrong") as other, pytest.raises(openai.AuthenticationError):
            other.models.list()
        with client(running, "secret") as other:
            assert [each.id for each in other.models.list()] == ["tiny"]


def test_its_streams_may_be_left(ai, talker):
    stream = ai.completions.create(model="tiny", prompt="ab", max_tokens=5000, stream=True)
    next(iter(stream))
    stream.close()
    assert talker.get("/health").status == 200
