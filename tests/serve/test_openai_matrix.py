"""What OpenAI's clients may send, as they come, and what comes of it: each row of the table in docs/serve.md is a
request of the official client. ``python -m tests.serve.test_openai_matrix`` prints the table."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import openai
import PIL.Image
import pytest

from racm3.pipeline import RACM3
from tests.serve.conftest import NAME, data_url
from tests.test_pipeline import picture

DOCS = Path(__file__).parents[2] / "docs" / "serve.md"
DRAW, CHAT, EMBED = "images.generate", "chat.completions.create", "embeddings.create"
SAID = [{"role": "user", "content": "a fox"}]

ACCEPTED: list[tuple[str, str, list[Any]]] = [
    (DRAW, "quality", [None, "auto", "standard"]),
    (DRAW, "style", [None, "natural"]),
    (DRAW, "background", [None, "auto", "opaque"]),
    (DRAW, "moderation", [None, "auto", "low"]),
    (DRAW, "output_format", [None, "png", "jpeg", "webp"]),
    (DRAW, "response_format", [None, "b64_json", "url"]),
    (DRAW, "size", [None, "auto", "64x64", "1024x1024"]),
    (DRAW, "n", [None, 1, 2]),
    (DRAW, "seed", [None, 3]),
    (DRAW, "user", [None, "somebody"]),
    (CHAT, "stop", [None, "a", ["a", "b"], []]),
    (CHAT, "logprobs", [None, False, True]),
    (CHAT, "top_logprobs", [None, 0]),
    (CHAT, "tools", [None, []]),
    (CHAT, "tool_choice", [None, "none", "auto"]),
    (CHAT, "parallel_tool_calls", [None, False]),
    (CHAT, "frequency_penalty", [None, 0, 0.0]),
    (CHAT, "presence_penalty", [None, 0]),
    (CHAT, "logit_bias", [None, {}]),
    (CHAT, "response_format", [None, {"type": "text"}]),
    (CHAT, "modalities", [None, ["text"]]),
    (CHAT, "store", [None, False]),
    (CHAT, "metadata", [None, {"run": "7"}]),
    (CHAT, "n", [None, 1, 2]),
    (CHAT, "temperature", [None, 0, 1]),
    (CHAT, "top_p", [None, 0.9]),
    (CHAT, "seed", [None, 3]),
    (CHAT, "max_tokens", [None, 4]),
    (CHAT, "max_completion_tokens", [None, 4]),
    (CHAT, "user", [None, "somebody"]),
    (EMBED, "encoding_format", [None, "float", "base64"]),
    (EMBED, "dimensions", [None]),
    (EMBED, "user", [None, "somebody"]),
]
REFUSED: list[tuple[str, str, Any, str]] = [
    (DRAW, "quality", "hd", "'auto' or 'standard'"),
    (DRAW, "style", "vivid", "'natural'"),
    (DRAW, "background", "transparent", "'auto' or 'opaque'"),
    (DRAW, "output_format", "gif", "'png', 'jpeg' or 'webp'"),
    (DRAW, "size", "1792x1024", "squares of 16 to 1024 px"),
    (CHAT, "tools", [{"type": "function", "function": {"name": "f"}}], "at most 0 items"),
    (CHAT, "tool_choice", "required", "'none' or 'auto'"),
    (CHAT, "frequency_penalty", 0.5, "less than or equal to 0"),
    (CHAT, "response_format", {"type": "json_object"}, "'text'"),
    (CHAT, "store", True, "False"),
    (CHAT, "top_logprobs", 5, "0"),
    (EMBED, "dimensions", 7, "the encoder's vectors have"),
]


@pytest.fixture(scope="module")
def client(served: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0)


def asked(client: openai.OpenAI, method: str, **fields: Any) -> Any:
    """A request of the official client, with what it needs at least."""
    usual: dict[str, Any] = {DRAW: {"prompt": "a fox"}, CHAT: {"messages": SAID}, EMBED: {"input": "a fox"}}[method]
    function: Any = client
    for name in method.split("."):
        function = getattr(function, name)
    if method == CHAT and not {"max_tokens", "max_completion_tokens"} & fields.keys():
        usual = usual | {"max_tokens": 4}
    known = {"seed"} if method == DRAW else set()  # not an argument of the client's
    extra = {name: value for name, value in fields.items() if name in known}
    given = {name: value for name, value in fields.items() if name not in known}
    return function(model=NAME, **usual, **given, extra_body=extra)


@pytest.mark.parametrize(("method", "field", "values"), ACCEPTED)
def test_what_is_accepted(client: openai.OpenAI, method: str, field: str, values: list[Any]) -> None:
    for value in values:
        more = {"logprobs": True} if field == "top_logprobs" else {}
        done = asked(client, method, **{field: value}, **more)
        assert getattr(done, "choices", None) or done.data


@pytest.mark.parametrize(("method", "field", "value", "told"), REFUSED)
def test_what_is_refused_names_what_is_not(
    client: openai.OpenAI, method: str, field: str, value: Any, told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(told)) as raised:
        asked(client, method, **{field: value})
    assert str(raised.value.param).partition(".")[0] == field


def table() -> str:
    """The accepted and refused values in Markdown."""
    no = {(method, field): value for method, field, value, _ in REFUSED}
    rows = ["| request | field | accepted | refused, for example |", "|---|---|---|---|"]
    for method, field, values in ACCEPTED:
        other = f"`{json.dumps(no[method, field])}`" if (method, field) in no else ""
        rows.append(f"| `{method}` | `{field}` | {', '.join(f'`{json.dumps(value)}`' for value in values)} | {other} |")
    return "\n".join(rows)


def test_the_table_in_the_documentation_is_this_one() -> None:
    assert table() in DOCS.read_text(encoding="utf-8"), (
        "put what `python -m tests.serve.test_openai_matrix` prints there"
    )


# What they do


def test_formats(client: openai.OpenAI) -> None:
    for kind, compression in (("png", None), ("jpeg", 50), ("webp", None)):
        done = asked(client, DRAW, output_format=kind, output_compression=compression)
        opened = PIL.Image.open(io.BytesIO(base64.b64decode(done.data[0].b64_json)))
        assert (opened.format, done.output_format) == (kind.upper(), kind)


def test_a_picture_by_its_signed_address(client: openai.OpenAI) -> None:
    by_value, by_url = (asked(client, DRAW, response_format=kind).data[0] for kind in ("b64_json", "url"))
    with urllib.request.urlopen(by_url.url) as answer:
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.read() == base64.b64decode(by_value.b64_json)
    for wrong in (by_url.url[:-1] + ("0" if by_url.url[-1] != "0" else "1"), by_url.url.replace("until=", "until=9")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(wrong)


def test_variants_differ(client: openai.OpenAI) -> None:
    drawn = asked(client, DRAW, n=3).data
    assert len({one.b64_json for one in drawn}) == 3
    said = asked(client, CHAT, n=3, max_tokens=8).choices
    assert len({one.message.content for one in said}) == 3


def test_a_stop_ends_the_text_streamed_or_not(client: openai.OpenAI) -> None:
    whole = asked(client, CHAT, max_tokens=8, seed=5, temperature=1).choices[0].message.content
    for stop in (whole[3:5], whole[:2], "\0not there"):
        wanted = whole.partition(stop)[0]
        same: dict[str, Any] = {"max_tokens": 8, "seed": 5, "temperature": 1, "stop": [stop]}
        done = asked(client, CHAT, **same).choices[0]
        assert (done.message.content or "") == wanted
        chunks = asked(client, CHAT, **same, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted


def test_logprobs_are_the_models(client: openai.OpenAI, twin: RACM3) -> None:
    done = asked(client, CHAT, logprobs=True, max_tokens=5).choices[0]
    assert "".join(one.token for one in done.logprobs.content) == done.message.content
    first = done.logprobs.content[0]
    from racm3.document import Document, Hole

    (expected,) = twin.complete([Document.of("a fox", Hole("text"))])
    answer = expected.answers[0]
    (scores,) = twin.engine.score([answer.prompts[0].ids], [answer.spans[0]])
    assert first.logprob == pytest.approx(scores[0], abs=1e-4)


def test_messages_of_every_role_and_our_own_answer_again(client: openai.OpenAI) -> None:
    hole = {"type": "hole", "modality": "image"}
    first = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a fox"}, hole]},  # type: ignore[list-item]
            {"role": "assistant", "content": None},
        ],
    )
    assert len(first.warnings) == 2  # type: ignore[attr-defined]
    answer: Any = first.choices[0].message
    assert answer.content is None
    again = client.chat.completions.create(model=NAME, max_tokens=4, messages=[*SAID, answer])  # type: ignore[list-item]
    assert again.usage is not None
    assert first.usage is not None
    assert again.usage.prompt_tokens > first.usage.prompt_tokens / 2


def test_vectors_are_the_encoders(client: openai.OpenAI, twin: RACM3) -> None:
    texts = ["a fox", "an owl at night"]
    expected = twin.encoder.embed_texts(texts)
    plain = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    coded = client.embeddings.create(model=NAME, input=texts)  # which asks for base64, and decodes it
    for done in (plain, coded):
        assert np.allclose([one.embedding for one in done.data], expected, atol=1e-5)
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=NAME, input=[[1, 2], [3]])
    assert str(raised.value.param).startswith("input")


def test_variations(client: openai.OpenAI) -> None:
    done = client.images.create_variation(image=picture(3).png(), n=2, size="256x256")
    assert done.data is not None
    shown = [PIL.Image.open(io.BytesIO(base64.b64decode(one.b64_json or ""))) for one in done.data]
    assert [one.size for one in shown] == [(256, 256)] * 2
    assert done.sources[0]["from"] == "given by hand"  # type: ignore[attr-defined]


def test_the_real_place_of_what_is_wrong(client: openai.OpenAI) -> None:
    def wrong(content: Any) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": content}])
        assert not re.search(r"tagged-union|Part\b|list\[", str(raised.value))
        return raised.value

    shown = {"type": "image_url", "image_url": {"url": data_url(picture(1))}}
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert wrong([shown, broken]).param == "messages.0.content.1.image_url.url"
    assert wrong([{"type": "image_url", "image_url": {"url": 7}}]).param == "messages.0.content.0.image_url.url"
    assert wrong([{"type": "image_url", "image_url": {}}]).param == "messages.0.content.0.image_url.url"
    assert wrong([{"type": "text", "text": "a", "txt": "b"}]).param == "messages.0.content.0.txt"
    assert wrong(7).param == "messages.0.content"


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const drawn = await client.images.generate({ prompt: "a fox", model: "tiny", n: 2, response_format: "b64_json" });
const said = await client.chat.completions.create({ model: "tiny", messages: [{ role: "system", content: "x" },
  { role: "user", content: "a fox" }], max_tokens: 4, tools: [], logprobs: true });
const stream = await client.chat.completions.create({ model: "tiny", messages: [{ role: "user", content: "a fox" }],
  max_tokens: 4, stream: true });
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
const vectors = await client.embeddings.create({ model: "tiny", input: "a fox" });
let code = "";
try { await client.images.generate({ prompt: "a fox " .repeat(200), model: "tiny" }); } catch (e) { code = e.code; }
console.log(JSON.stringify({ drawn: drawn.data.length, said: said.choices[0].message.content, text,
  vector: vectors.data[0].embedding.length, code }));
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
@pytest.mark.slow
def test_the_npm_client(served: str, client: openai.OpenAI, twin: RACM3, tmp_path: Path) -> None:
    (tmp_path / "ask.mjs").write_text(NODE, encoding="utf-8")
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=tmp_path, check=True)
    done = subprocess.run(["node", "ask.mjs", served], cwd=tmp_path, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    expected = asked(client, CHAT, max_tokens=4).choices[0].message.content
    assert told == {
        "drawn": 2,
        "said": expected,
        "text": expected,
        "vector": twin.encoder.dimension,
        "code": "context_length_exceeded",
    }


if __name__ == "__main__":
    print(table())
