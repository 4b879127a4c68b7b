"""Exported, a model is the same: to transformers as to racm3."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from racm3.document import Hole
from racm3.errors import CheckpointError
from racm3.export import CARD, GRAMMAR, export_transformers, whole_tokenizer
from racm3.generator.engine import Engine, SequenceRequest
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.prompt import answer_constraint, build_prompt
from racm3.generator.sampling import Sampling
from racm3.model_folder import ModelFolder
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

CODES = 16
TEXT = TextTokenizer.train(["a fox in the snow", "two castles at night"], 280)
V = Vocabulary(TEXT.size, 9)
MARKUP = Markup(V, CODES)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(V.size, 32, 2, 2, 1, 16, 32, context_tokens=96))
    with torch.no_grad():  # an opinion
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return generator.eval()


@pytest.fixture(scope="module")
def exported(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, out = ModelFolder(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("exported") / "out"
    folder.save_generator(generator, TEXT, MARKUP, (4, 4))
    export_transformers(folder, out)
    with pytest.raises(CheckpointError, match="holds something already"):
        export_transformers(folder, out)
    return out


def grammar(folder: Path) -> Any:
    """The one in the documentation, executed."""
    page = (Path(__file__).parent.parent / "docs" / "interop.md").read_text(encoding="utf-8")
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class" in block]
    assert snippet.strip() == GRAMMAR
    names: dict[str, Any] = {}
    exec(snippet, names)
    return names["DocumentGrammar"](folder)


def test_the_tokenizer_has_every_id_of_the_weights(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert len(tokenizer) == V.size
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (V.pad, V.eos)
    document = (TextIds(tuple(TEXT.encode("a fox, дом 🦊"))), ImageCodes(tuple(range(9)) + (0,) * 7))
    ids = MARKUP.to_ids(document)
    written = "<doc><text>a fox, дом 🦊<image>" + "".join(f"<image:{code}>" for code in document[1].codes) + "</doc>"
    assert tokenizer(written)["input_ids"] == ids
    assert tokenizer.decode(ids) == written
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a fox, дом 🦊"
    assert [tokenizer.convert_tokens_to_ids(V.name(id)) for id in range(V.text_start)] == list(range(V.text_start))


@pytest.mark.parametrize("text", [False, True])
def test_transformers_with_the_grammar_generates_what_racm3_does(
    generator: Generator, exported: Path, text: bool
) -> None:
    words, picture = TextIds(tuple(TEXT.encode("a fox"))), ImageCodes((3,) * CODES)
    prompt = build_prompt([(words, picture)], [Hole("text"), picture] if text else [words, Hole("image")], MARKUP, 12)
    job = SequenceRequest(prompt.ids, answer_constraint(prompt.spans, V), Sampling(temperature=0))
    (done,) = Engine(generator, V).run([job])
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    found = model.generate(
        torch.tensor([prompt.ids]),
        max_new_tokens=12 if text else CODES,
        do_sample=False,
        logits_processor=[grammar(exported)],
    )
    answer = [id for id in found[0, len(prompt.ids) :].tolist() if id != V.eos]
    assert answer == list(done.tokens)


def test_the_grammar_writes_documents_whatever_the_model_thinks(exported: Path) -> None:
    processor, random = grammar(exported), torch.Generator().manual_seed(0)
    ids = [V.doc]
    while V.eos not in ids:
        scores = torch.randn(1, V.size, generator=random)
        scores[0, [V.end, V.eos]] += 2  # so that it ends
        ids.append(int(processor(torch.tensor([ids]), scores).argmax()))
    starts = [i for i, id in enumerate(ids) if id == V.doc]
    for start, end in zip(starts, [*starts[1:], len(ids) - 1], strict=True):
        assert MARKUP.from_ids(ids[start:end])
    assert int(processor(torch.tensor([ids]), torch.randn(1, V.size)).argmax()) == V.pad


def test_vllm_finds_every_weight(exported: Path, generator: Generator) -> None:
    """vLLM's Qwen3 puts what it finds in the file into these parameters, some of which are several in one."""
    c = generator.config
    inner, kv_inner = c.heads * c.head_dim, c.kv_heads * c.head_dim
    whole = {"model.embed_tokens.weight": [c.vocabulary_size, c.width], "model.norm.weight": [c.width]}
    for layer in range(c.layers):
        shapes = {
            "self_attn.qkv_proj": [inner + 2 * kv_inner, c.width],
            "self_attn.o_proj": [c.width, inner],
            "self_attn.q_norm": [c.head_dim],
            "self_attn.k_norm": [c.head_dim],
            "mlp.gate_up_proj": [2 * c.mlp_width, c.width],
            "mlp.down_proj": [c.width, c.mlp_width],
            "input_layernorm": [c.width],
            "post_attention_layernorm": [c.width],
        }
        whole |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    found: dict[str, list[int]] = {}
    for name, value in load_file(exported / "model.safetensors").items():
        for part, one in {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}.items():
            name = re.sub(rf"\.{part}_proj\.", f".{one}_proj.", name)
        rows, *columns = value.shape
        found[name] = [found.get(name, [0])[0] + rows, *columns]
    assert found == whole  # and no lm_head, which is the embedding
    config = AutoConfig.from_pretrained(exported)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert (config.head_dim, config.tie_word_embeddings) == (c.head_dim, True)
    written = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert written["rope_theta"] == config.rope_parameters["rope_theta"] == c.rope_theta  # vLLM reads one or the other


def test_the_vllm_recipe_writes_a_picture(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in the documentation, executed; transformers does what the sampling parameters say."""

    class LLM:
        def __init__(self, folder: str) -> None:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        def generate(self, prompts: list[str], sampling: SimpleNamespace) -> list[SimpleNamespace]:
            (ids,) = self.tokenizer(prompts)["input_ids"]
            assert ids[0] == V.doc
            assert ids[-1] == V.image
            assert sampling.ignore_eos
            out = self.model.generate(
                torch.tensor([ids]),
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                min_new_tokens=sampling.min_tokens,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=None,
                prefix_allowed_tokens_fn=lambda row, own: sampling.allowed_token_ids,
            )
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=out[0, len(ids) :].tolist())])]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))
    page = (Path(__file__).parent.parent / "docs" / "interop.md").read_text(encoding="utf-8")
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "vllm" in block]
    names: dict[str, Any] = {}
    exec(snippet.replace("out/exported", exported.as_posix()), names)
    document = (TextIds(tuple(TEXT.encode("a fox in the snow"))), ImageCodes(tuple(names["codes"])))
    assert MARKUP.from_ids(MARKUP.to_ids(document)) == document
    assert len(set(names["codes"])) > 1


def test_the_card_is_tagged_and_shows_the_grammar(exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: any-to-any\n")
    assert GRAMMAR in card
    assert "{" not in re.sub(r"```python.*?```", "", card, flags=re.DOTALL), CARD


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no racm3.json"):
        export_transformers(ModelFolder(tmp_path), tmp_path / "out")
    TEXT.save(tmp_path / "tokenizer.json")
    facts = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for change, message in (({"type": "WordPiece"}, "of type WordPiece"), ({}, "a token '<doc>' of its own")):
        model = facts["model"] | change
        if change:
            model = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"} | {
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 9,
            }
        else:
            model["vocab"] = model["vocab"] | {"<doc>": TEXT.size}
        (tmp_path / "tokenizer.json").write_text(json.dumps(facts | {"model": model}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            whole_tokenizer(tmp_path / "tokenizer.json", V)
