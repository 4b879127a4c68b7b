"""The API in one process: memory, limits, who may do what, and that every refusal has one shape."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fastapi.testclient import TestClient

from racm3.data import Item
from racm3.document import Document, Hole
from racm3.errors import ConfigError
from racm3.generator.sampling import Sampling
from racm3.pipeline import RACM3, Settings
from racm3.retriever.retriever import searcher
from racm3.serve.app import create_app
from racm3.serve.guard import LOOPBACK_HOSTS, Tokens
from racm3.serve.limits import LIMITS
from racm3.serve.run import load_policy
from tests.serve.conftest import NAME, data_url, decoded, open_model
from tests.test_pipeline import picture

READ, WRITE = "r" * 20, "w" * 20
SAID = {"role": "user", "content": "a fox"}
FOX = {"prompt": "a fox in the snow"}


def refused(answer: Any, status: int, message: str = "") -> dict[str, Any]:
    """The error of an answer, which has the one shape."""
    assert answer.status_code == status, answer.text
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(message, error["message"]), error["message"]
    return error


# Memory


def test_a_document_is_there_for_the_very_next_request_and_gone_after_the_next(client: TestClient) -> None:
    new = {"id": "new", "text": "a fox in the snow", "image": data_url(picture(50)), "metadata": {"licence": "CC0"}}
    added = client.post("/v1/memory/documents", json=new)
    assert added.status_code == 201
    assert added.json() == {
        "id": "new",
        "object": "memory.document",
        "text": "a fox in the snow",
        "image": "/v1/memory/images/new",
        "metadata": {"licence": "CC0"},
        "from": "api",
    }
    sources = client.post("/v1/images/generations", json=FOX).json()["sources"]
    assert "new" in [source["id"] for source in sources]
    assert client.get("/v1/memory/documents/new").json() == added.json()
    shown = client.get("/v1/memory/images/new")
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(shown.content))), picture(50).pixels)
    assert client.delete("/v1/memory/documents/new").json()["deleted"] is True
    sources = client.post("/v1/images/generations", json=FOX).json()["sources"]
    assert "new" not in [source["id"] for source in sources]
    refused(client.get("/v1/memory/documents/new"), 404, "holds no document 'new'")
    refused(client.delete("/v1/memory/documents/new"), 404, "holds no document 'new'")
    refused(client.get("/v1/memory/images/new"), 404, "holds no document 'new'")


def test_the_same_document_again_is_no_error_and_another_of_its_id_is(client: TestClient) -> None:
    form = {"text": "a boat", "metadata": json.dumps({"a": 1})}
    files = {"image": ("boat.png", picture(51).png())}
    first = client.post("/v1/memory/documents", data=form, files=files)
    again = client.post("/v1/memory/documents", data=form, files=files)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["id"].startswith("doc-")
    other = client.post("/v1/memory/documents", json={"id": first.json()["id"], "text": "a ship"})
    assert refused(other, 409, "with other content")["code"] == "exists"


def test_pages_and_search(client: TestClient, twin: RACM3) -> None:
    assert twin.memory is not None
    first = client.get("/v1/memory/documents?limit=3").json()
    rest = client.get("/v1/memory/documents?limit=3&offset=3").json()
    assert [one["id"] for one in first["data"] + rest["data"]] == list(twin.memory.ids)
    assert (first["total"], first["has_more"], rest["has_more"]) == (4, True, False)
    found = client.post("/v1/memory/search", json={"text": "two castles at night", "limit": 2}).json()["data"]
    (expected,) = searcher(twin.memory, twin.encoder).retrieve([Document.of("two castles at night")], 2)
    assert expected
    assert [one["id"] for one in found] == [hit.id for hit in expected]
    assert [one["score"] for one in found] == pytest.approx([hit.score for hit in expected])
    found = client.post("/v1/memory/search", json={"image": data_url(picture(2)), "where": ["row=2"]}).json()["data"]
    assert [one["id"] for one in found] == ["item-2"]


def test_ids_as_folders_make_them(client: TestClient) -> None:
    """With slashes, blanks and marks that mean something in a URL: the paths that the API gives lead to them."""
    name = "animals/a fox?#1 & 2.png/image"
    model: RACM3 = client.model  # type: ignore[attr-defined]
    assert model.memory is not None
    document = Document.of("a fox", picture(52))
    model.memory.add([Item(name, document, {}, "test")], model.encoder.embed([document]))
    (found,) = [one for one in client.get("/v1/memory/documents").json()["data"] if one["id"] == name]
    assert client.get(found["image"]).headers["content-type"] == "image/png"
    path = found["image"].replace("/images/", "/documents/")
    assert client.get(path).json()["id"] == name
    assert client.delete(path).json()["id"] == name


def test_documents_that_are_refused(client: TestClient) -> None:
    def add(**fields: Any) -> Any:
        body = json.dumps(fields)  # as no client would write it: half characters stay
        return client.post("/v1/memory/documents", content=body, headers={"Content-Type": "application/json"})

    refused(add(), 400, "nothing to remember")
    refused(add(id="../../etc/passwd", text="x"), 400, "id: String should match")
    refused(add(text="x", metadata={"a": "\ud800"}), 400, "no JSON")
    refused(add(text="x", metadata={"a": "b" * 30_000}), 400, "metadata have at most")
    refused(add(text="x", image="data:image/png;base64,AAAA"), 400, "not a picture")
    deep: Any = {}
    for _ in range(60):
        deep = {"a": deep}
    refused(add(text="x", metadata=deep), 400, "nested deeper")
    refused(client.post("/v1/memory/documents", data={"text": "x"}), 415)
    refused(client.post("/v1/memory/search", json={}), 400, "nothing to look for")
    refused(client.post("/v1/memory/search", json={"text": "x", "where": ["?"]}), 400, "is no condition")
    assert client.get("/v1/memory/documents").json()["total"] == 4


def test_without_a_memory(models: Path) -> None:
    with TestClient(create_app(RACM3.from_pretrained(models))) as client:
        assert refused(client.get("/v1/memory/documents"), 404)["code"] == "no_memory"
        assert client.post("/v1/images/generations", json=FOX).json()["sources"] == []


# Completing


def test_the_vanilla_switch_is_a_request_without_the_memory(client: TestClient, twin: RACM3) -> None:
    done = client.post("/v1/images/generations", json=FOX | {"racm3": {"retrieve": False, "samples": 2}}).json()
    expected = twin.generate_image(FOX["prompt"], Settings(k=0, samples=2))
    assert done["sources"] == []
    assert np.array_equal(decoded(done["data"][0]["b64_json"]), expected.document.images[0].pixels)
    assert done["data"][0]["score"] == pytest.approx(expected.score)


def test_how_much_the_documents_count_holds_for_pictures_and_words(client: TestClient, twin: RACM3) -> None:
    drawn = client.post("/v1/images/generations", json=FOX | {"racm3": {"context_aware": 5.0, "temperature": 0}}).json()
    content = [{"type": "image_url", "image_url": {"url": data_url(picture(7))}}]
    told = client.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": content}], "racm3": {"context_aware": 5.0}, "max_tokens": 4},
    ).json()
    settings = Settings(
        image=Sampling(temperature=0, top_p=0.9, context_aware=5.0), text=Sampling(0, context_aware=5.0)
    )
    expected = twin.generate_image(FOX["prompt"], settings)
    caption = twin.caption(picture(7), replace(settings, max_text_tokens=4))
    assert np.array_equal(decoded(drawn["data"][0]["b64_json"]), expected.document.images[0].pixels)
    assert told["choices"][0]["message"]["content"] == caption.document.text
    assert drawn["racm3"]["context_aware"] == told["racm3"]["context_aware"] == 5.0
    usual = client.post("/v1/images/generations", json=FOX | {"racm3": {"temperature": 0}}).json()
    assert usual["racm3"]["context_aware"] == Settings().image.context_aware
    assert usual["data"] != drawn["data"]


def test_what_reproduces_an_answer_does(client: TestClient, twin: RACM3) -> None:
    asked = {
        "image": {"top_p": 0.5, "min_p": 0.1},
        "text": {"top_k": 3},
        "max_text_tokens": 7,
        "seed": 4,
        "guidance": 2.0,
    }
    first = client.post("/v1/images/generations", json=FOX | {"racm3": asked}).json()
    usual = Settings()
    image = replace(usual.image, top_p=0.5, min_p=0.1, guidance=2.0)
    settings = replace(usual, image=image, text=replace(usual.text, top_k=3), max_text_tokens=7, seed=4)
    expected = twin.generate_image(FOX["prompt"], settings)
    assert np.array_equal(decoded(first["data"][0]["b64_json"]), expected.document.images[0].pixels)
    again = client.post("/v1/images/generations", json=FOX | {"racm3": first["racm3"]}).json()
    assert (again["data"], again["racm3"]) == (first["data"], first["racm3"])


def test_an_option_by_its_old_name_is_told_the_new_one(client: TestClient) -> None:
    for racm3 in ({"grounding": 2.0}, {"image": {"grounding": 2.0}}):
        refused(
            client.post("/v1/images/generations", json=FOX | {"racm3": racm3}), 400, "is called 'context_aware' now"
        )


def test_classification(client: TestClient, twin: RACM3) -> None:
    examples = {"animal X": [picture(1)], "animal Y": [picture(2)]}
    given = {label: [data_url(image) for image in shown] for label, shown in examples.items()}
    done = client.post("/v1/classify", json={"images": [data_url(picture(3))], "examples": given}).json()
    (expected,) = twin.classify([picture(3)], examples)
    assert [(one["label"], one["probability"]) for one in done["data"][0]["labels"]] == list(expected.items())
    many = {str(i): [data_url(picture(1))] * 8 for i in range(10)}
    refused(client.post("/v1/classify", json={"images": [data_url(picture(3))] * 2, "examples": many}), 400, "720")


def test_a_text_is_attributed_to_the_sources(client: TestClient) -> None:
    content = [{"type": "image_url", "image_url": {"url": data_url(picture(7))}}]
    asked = {"messages": [{"role": "user", "content": content}], "racm3": {"attribution": True}, "max_tokens": 4}
    choice = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
    (told,) = choice["attribution"]
    assert told["words"] == choice["message"]["content"].split()
    assert np.shape(told["gains"]) == (len(told["words"]), 2)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/images/generations", {"promt": "a fox"}, "no field 'promt'"),
        ("/v1/images/generations", {"prompt": " "}, "prompt: a text with a visible character"),
        ("/v1/images/generations", {"prompt": "a", "n": "2"}, "n: Input should be a valid integer"),
        ("/v1/images/generations", {"prompt": "a", "size": "64x32"}, "pictures are squares"),
        ("/v1/images/generations", {"prompt": "a", "stream": True, "n": 2}, "shows one picture"),
        ("/v1/images/generations", {"prompt": "a", "racm3": {"k": 9}}, "racm3.k: Input should be less"),
        ("/v1/images/generations", {"prompt": "a\ud800"}, "prompt"),
        ("/v1/chat/completions", {"messages": []}, "at least 1 item"),
        ("/v1/chat/completions", {"messages": [SAID], "seed": 1, "racm3": {"seed": 2}}, "given twice"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, path: str, body: dict[str, Any], message: str) -> None:
    refused(client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}), 400, message)


def test_bodies_that_are_no_json(client: TestClient) -> None:
    for body in (b"", b"{", b"[" * 100_000, b'{"prompt": NaN}', b'{"n": ' + b"9" * 10_000 + b"}", b"\xff"):
        refused(client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"}), 400)
    refused(client.post("/v1/images/generations", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    refused(client.post("/v1/images/edits", json={}), 415, "multipart/form-data")
    bad = {"Content-Type": "multipart/form-data"}
    refused(client.post("/v1/images/edits", content=b"--x", headers=bad), 400, "the form is broken")
    refused(client.get("/nowhere"), 404)
    refused(client.put("/v1/models"), 405)


# Who may


@pytest.fixture
def guarded(models: Path, memory_path: Path, tmp_path: Path) -> Iterator[TestClient]:
    tokens = Tokens({READ: "read", WRITE: "write"})
    limits = replace(LIMITS, body_bytes=50_000, pixels=32 * 32)
    app = create_app(open_model(models, memory_path, tmp_path / "m"), NAME, limits=limits, tokens=tokens)
    with TestClient(app) as client:
        yield client


def test_tokens_and_scopes(guarded: TestClient) -> None:
    def asking(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    for headers in ({}, asking("x" * 20), {"Authorization": f"Basic {WRITE}"}, {"Authorization": WRITE}):
        answer = guarded.get("/v1/memory/documents", headers=headers)
        assert refused(answer, 401, "Bearer TOKEN")["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        refused(guarded.get("/metrics", headers=headers), 401)
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200
    new = {"id": "a", "text": "a fox"}
    refused(guarded.post("/v1/memory/documents", json=new, headers=asking(READ)), 403, "may not change the memory")
    refused(guarded.delete("/v1/memory/documents/item-0", headers=asking(READ)), 403)
    assert guarded.get("/v1/memory/documents", headers=asking(READ)).json()["total"] == 4
    assert guarded.post("/v1/images/generations", json=FOX, headers=asking(READ)).status_code == 200
    assert guarded.post("/v1/memory/documents", json=new, headers=asking(WRITE)).status_code == 201


def test_what_is_too_large(guarded: TestClient) -> None:
    headers = {"Authorization": f"Bearer {WRITE}", "Content-Type": "application/json"}
    refused(guarded.post("/v1/memory/search", content=b" " * 60_000, headers=headers), 413, "at most 50,000 bytes")
    pieces = iter([b" " * 30_000] * 2)  # without a length
    refused(guarded.post("/v1/memory/search", content=pieces, headers=headers), 413)
    large = json.dumps({"image": data_url(picture(1, 33))})
    refused(guarded.post("/v1/memory/search", content=large, headers=headers), 400, "33 x 33 pixels; at most 1,024")


def test_pages_of_others_may_not_ask(models: Path) -> None:
    app = create_app(RACM3.from_pretrained(models), hosts=LOOPBACK_HOSTS)
    with TestClient(app, base_url="http://localhost:8000") as client:
        assert client.get("/health", headers={"Origin": "http://localhost:8000"}).status_code == 200
        assert client.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200
        refused(client.get("/health", headers={"Host": "evil.example"}), 403, "evil.example")
        refused(client.post("/v1/images/generations", json=FOX, headers={"Origin": "http://evil.example"}), 403)
        refused(client.get("/health", headers={"Origin": "null"}), 403)


def test_too_often(models: Path) -> None:
    with TestClient(create_app(RACM3.from_pretrained(models), limits=replace(LIMITS, requests_a_minute=3))) as client:
        answers = [client.get("/v1/models") for _ in range(4)]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        assert refused(answers[3], 429)["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20


def test_a_full_queue_and_a_deadline(models: Path) -> None:
    model = RACM3.from_pretrained(models)
    held = threading.Event()
    step = model.engine.step
    model.engine.step = lambda: held.wait(10) and step()  # type: ignore[method-assign, assignment]
    app = create_app(model, limits=replace(LIMITS, queue=1))
    statuses: list[Any] = []
    with TestClient(app) as client:

        def ask(**more: Any) -> None:
            statuses.append(client.post("/v1/images/generations", json=FOX | {"n": 10, "racm3": {"samples": 4} | more}))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:  # one runs, one waits, one is refused
            thread.start()
            time.sleep(0.3)
        held.set()
        for thread in threads:
            thread.join()
        refusal = refused(statuses[0], 429, "try again in")
        assert refusal["code"] == "queue_full"
        assert int(statuses[0].headers["retry-after"]) >= 1
        assert [answer.status_code for answer in statuses[1:]] == [200, 200]
        ask(timeout_s=1e-6)
        assert refused(statuses[-1], 408, "longer than")["code"] == "deadline_exceeded"
        assert client.get("/ready").json() == {"status": "ready"}


def test_a_policy_sees_every_document(models: Path, memory_path: Path, tmp_path: Path) -> None:
    seen = []

    def policy(stage: str, document: Document) -> str | None:
        seen.append(stage)
        return "no castles here" if "castle" in (document.text or "") else None

    model = open_model(models, memory_path, tmp_path / "m")
    with TestClient(create_app(model, policy=policy)) as client:
        no = client.post("/v1/images/generations", json={"prompt": "a castle"})
        assert refused(no, 400, "no castles here")["code"] == "content_policy_violation"
        refused(client.post("/v1/memory/documents", json={"text": "a castle"}), 400, "no castles here")
        events = client.post("/v1/images/generations", json=FOX | {"stream": True}).text
        assert "partial_image" not in events  # the answer is looked at as a whole
        assert "image_generation.completed" in events
    assert seen == ["request", "memory", "request", "answer"]
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_policy("racm3.serve.none:policy")
    assert load_policy("os.path:exists")


def test_what_the_server_tells_of_itself(client: TestClient) -> None:
    assert client.post("/v1/images/generations", json=FOX).status_code == 200
    text = client.get("/metrics").text
    assert 'racm3_requests_total{method="POST",route="/v1/images/generations",status="200"} 1.0' in text
    assert "racm3_documents 4.0" in text
    (steps,) = re.findall(r"racm3_steps (\d+)\.0", text)
    assert 4 <= int(steps) <= 16  # 16 codes, some of them drafted
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/images/edits", "/v1/memory/documents/{item_id}", "/metrics", "/v1/classify"} <= set(paths)
    assert all("4XX" in operation["responses"] for path in paths.values() for operation in path.values())


def test_a_fault_tells_nothing_of_the_server(models: Path) -> None:
    model = RACM3.from_pretrained(models)

    def fail() -> None:
        raise OSError("/secret/path")

    model.engine.step = fail  # type: ignore[method-assign, assignment]
    with TestClient(create_app(model), raise_server_exceptions=False) as client:
        error = refused(client.post("/v1/images/generations", json=FOX), 500, "its log says why")
        assert error["type"] == "server_error"


def test_nothing_of_one_request_reaches_another(client: TestClient, twin: RACM3) -> None:
    """Sixteen of different kinds at once, each as if it had been alone."""
    prompts = [
        f"{who} {where}" for who in ("a fox", "an owl", "a boat", "a castle") for where in ("in the snow", "at night")
    ]
    answers: dict[str, Any] = {}

    def draw(prompt: str) -> None:
        answers[prompt] = client.post("/v1/images/generations", json={"prompt": prompt}).json()["data"][0]["b64_json"]

    threads = [threading.Thread(target=draw, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        (alone,) = twin.complete([Document.of(prompt, Hole("image"))])
        assert np.array_equal(decoded(answers[prompt]), alone.document.images[0].pixels)
