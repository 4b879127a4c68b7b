"""The official client, unchanged: what it gets is what ``RACM3.complete`` gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest

from racm3.document import Document, Hole, Image, Text
from racm3.pipeline import RACM3, Settings
from tests.serve.conftest import NAME, data_url, decoded
from tests.test_pipeline import masked, picture

USUAL = Settings()
SHORT = replace(USUAL, max_text_tokens=6)


@pytest.fixture(scope="module")
def client(served: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0)


def caption_of(image: Image) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(image)}}]}]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match=f"this server has '{NAME}'"):
        client.models.retrieve("gpt-image-1")


def test_pictures_for_a_caption(client: openai.OpenAI, twin: RACM3) -> None:
    done = client.images.generate(
        prompt="a fox in the snow", model=NAME, n=2, extra_body={"racm3": {"seed": 5, "attribution": True}}
    )
    asked = [Document.of("a fox in the snow", Hole("image"))] * 2
    expected = twin.complete(asked, replace(USUAL, seed=5))
    assert done.data is not None
    for own, other in zip(done.data, expected, strict=True):
        assert own.b64_json is not None
        assert np.array_equal(decoded(own.b64_json), other.document.images[0].pixels)
        assert own.attribution["cells"] == list(range(16))  # type: ignore[attr-defined]
        assert np.shape(own.attribution["gains"]) == (16, 2)  # type: ignore[attr-defined]
        assert decoded(own.attribution["overlay"]).shape[2] == 3  # type: ignore[attr-defined]
    told = [(source["id"], source["caption"], source["from"]) for source in done.sources]  # type: ignore[attr-defined]
    assert told == [(hit.id, hit.document.text, "test") for hit in expected[0].sources]
    assert done.racm3["seed"] == 5  # type: ignore[attr-defined]
    assert done.usage is not None
    assert done.usage.output_tokens == 2 * 16


def test_a_picture_row_by_row(client: openai.OpenAI, twin: RACM3) -> None:
    asked = Document.of("a fox in the snow", Hole("image"))
    *partials, last = client.images.generate(prompt="a fox in the snow", stream=True, size="64x64")
    *expected, whole = twin.stream(asked)
    assert [event.type for event in partials] == ["image_generation.partial_image"] * len(expected)
    assert [decoded(event.b64_json).shape for event in partials] == [(64, 64, 3)] * len(expected)
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens == 16
    one, *rest = client.images.generate(prompt="a fox in the snow", stream=True, partial_images=1)
    assert (len(rest), rest[0].type) == (1, "image_generation.completed")
    assert isinstance(expected[0].content, Image)
    assert np.array_equal(decoded(one.b64_json), expected[0].content.pixels)
    assert whole.completion is not None
    assert np.array_equal(decoded(rest[0].b64_json), whole.completion.document.images[0].pixels)


def test_edits(client: openai.OpenAI, twin: RACM3) -> None:
    hole, control = masked(picture(8), slice(8, 24), slice(0, 16)), picture(9)
    white = Image(np.repeat(np.where(hole.mask, 255, 0)[..., None], 3, 2).astype(np.uint8))  # type: ignore[call-overload]
    files = {"image": hole.png(), "mask": white.png()}
    done = client.images.edit(prompt="a fox", **files, extra_body={"racm3": {"k": 1, "seed": 3}})  # type: ignore[call-overload]
    expected = twin.infill(hole, "a fox", replace(USUAL, k=1, seed=3))
    assert np.array_equal(decoded(done.data[0].b64_json), expected.document.images[0].pixels)
    assert [source["id"] for source in done.sources] == [hit.id for hit in expected.sources]
    pair = [hole.png(), control.png()]
    *_, last = client.images.edit(prompt="a fox", image=pair, mask=white.png(), stream=True)
    assert last.type == "image_edit.completed"
    expected = twin.edit(hole, control, "a fox")
    assert np.array_equal(decoded(last.b64_json), expected.document.images[0].pixels)


def test_captions(client: openai.OpenAI, twin: RACM3) -> None:
    expected = twin.caption(picture(7), SHORT)
    done = client.chat.completions.create(model=NAME, messages=caption_of(picture(7)), max_tokens=6)
    assert done.choices[0].message.content == expected.document.text
    assert done.usage is not None
    assert done.usage.completion_tokens == expected.answers[0].steps
    cut = len(expected.answers[0].spans[0]) == 6
    assert done.choices[0].finish_reason == ("length" if cut else "stop")
    chunks = list(
        client.chat.completions.create(
            model=NAME,
            messages=caption_of(picture(7)),
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == expected.document.text
    assert chunks[-1].usage == done.usage
    assert len(chunks[-2].sources) == 2  # type: ignore[attr-defined]


def test_interleaved(client: openai.OpenAI, twin: RACM3) -> None:
    """Two holes, the second a picture."""
    parts: Any = [{"type": "hole", "modality": "text"}, {"type": "text", "text": "at night"}]
    parts += [{"type": "hole", "modality": "image"}]
    (expected,) = twin.complete([Document.of(Hole("text"), "at night", Hole("image"))], SHORT)
    text, drawn = expected.document.parts[0], expected.document.images[0]
    assert isinstance(text, Text)
    messages = [{"role": "user", "content": parts}]
    done = client.chat.completions.create(model=NAME, messages=messages, max_tokens=6)  # type: ignore[arg-type]
    message: Any = done.choices[0].message
    assert message.content == text.text
    assert np.array_equal(decoded(message.images[0]["image_url"]["url"]), drawn.pixels)
    *_, last = client.chat.completions.create(model=NAME, messages=messages, max_tokens=6, stream=True)  # type: ignore[call-overload]
    assert np.array_equal(decoded(last.choices[0].delta.images[0]["image_url"]["url"]), drawn.pixels)


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the messages have no content") as raised:
        client.chat.completions.create(model=NAME, messages=[{"role": "system", "content": "be brief"}])
    assert raised.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="exceed the generator's context") as raised:
        client.images.generate(prompt="a fox " * 200)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError, match="exceed the generator's context"):
        client.images.generate(prompt="a fox " * 200, stream=True)
    with pytest.raises(openai.BadRequestError, match="exceed the generator's context"):
        client.chat.completions.create(model=NAME, messages=caption_of(picture(7)), max_tokens=1000, stream=True)
    url: Any = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
    with pytest.raises(openai.BadRequestError, match="fetches no URLs") as raised:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": [url]}])
    assert raised.value.param == "messages.0.content.0.image_url.url"
