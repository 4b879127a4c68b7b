"""Export: a generator as other tools open it.

A generator folder is a ``Qwen3ForCausalLM`` already. What other tools lack is a tokenizer of the whole vocabulary,
special tokens and image codes included, with the ids of the weights; and the grammar, which the model card has as code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from racm3.errors import CheckpointError
from racm3.model_folder import FACTS, ModelFolder
from racm3.tokens.markup import AFTER_PART, FOLLOWS
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

__all__ = ["export_transformers", "whole_tokenizer"]


def export_transformers(folder: ModelFolder, out: Path) -> None:
    """Write the folder's generator for ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Raises CheckpointError if it is none of racm3, or ``out`` holds something already.
    """
    markup, path = folder.markup, folder.generator_path
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise CheckpointError(f"{out} holds something already; give a folder that is empty or not there yet")
    vocabulary = markup.vocabulary
    tokenizer = whole_tokenizer(path / "tokenizer.json", vocabulary)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", FACTS):
        shutil.copy(path / name, out / name)
    tokenizer.save(str(out / "tokenizer.json"))
    special = {f"{kind}_token": vocabulary.name(getattr(vocabulary, kind)) for kind in ("pad", "eos")}
    context = json.loads((path / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    _write(
        out / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **special},
    )
    _write(out / "generation_config.json", {"pad_token_id": vocabulary.pad, "eos_token_id": vocabulary.eos})
    filled = f"Texts are filled up with `<pad>` to {markup.text_ids} ids.\n" if markup.text_ids else ""
    card = CARD.format(grammar=GRAMMAR, codes=markup.codes_per_image, image_size=vocabulary.image_size, filled=filled)
    (out / "README.md").write_text(card, encoding="utf-8")


def whole_tokenizer(path: Path, vocabulary: Vocabulary) -> Tokenizer:
    """The text tokenizer with every other id of the vocabulary added, ``<image:0>`` and so on for the codes.

    Raises CheckpointError unless it is a byte-pair encoding whose tokens have other names than those.
    """
    TextTokenizer.load(path)  # says what is wrong with it, if anything is
    facts = json.loads(path.read_text(encoding="utf-8"))
    model = facts["model"]
    if model["type"] != "BPE":
        raise CheckpointError(f"{path} is of type {model['type']}; only byte-pair encodings (BPE) are exported")
    others = {vocabulary.name(id_): id_ for id_ in range(vocabulary.text_start)}
    others |= {f"<image:{code}>": vocabulary.image_start + code for code in range(vocabulary.image_size)}
    words = {token: id_ + vocabulary.text_start for token, id_ in model["vocab"].items()}
    added = [entry | {"id": entry["id"] + vocabulary.text_start} for entry in facts["added_tokens"]]
    words |= {entry["content"]: entry["id"] for entry in added}
    if clash := sorted(words.keys() & others.keys()):
        raise CheckpointError(f"{path} has a token {clash[0]!r} of its own; rename it there")
    model["vocab"] = others | words
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    facts["added_tokens"] = sorted(
        [*added, *({"id": id_, "content": name} | plain for name, id_ in others.items())], key=lambda entry: entry["id"]
    )
    return Tokenizer.from_str(json.dumps(facts))


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


TEMPLATE = '''
import json
import torch
from transformers import LogitsProcessor

{names} = {ids}  # ids; words begin at {words}


class DocumentGrammar(LogitsProcessor):
    """What may follow: a picture has exactly its codes, a text at least one word, and neither has anything else."""

    def __init__(self, folder):
        with open(f"{folder}/racm3.json") as file:
            facts = json.load(file)
        self.codes = WORDS + facts["text_size"]
        self.count = facts["codes_per_image"]

    def __call__(self, ids, scores):
        for row, own in zip(scores, ids.tolist()):
            last = max(i for i, id in enumerate(own) if id < WORDS)
            inside = len(own) - 1 - last
            allowed = torch.zeros_like(row, dtype=torch.bool)
            if own[last] == IMAGE and inside < self.count:
                allowed[self.codes :] = True
            elif own[last] in (TEXT, IMAGE):
                allowed[{after_part}] = inside > 0
                allowed[WORDS : self.codes] = own[last] == TEXT
            elif own[last] >= INFILL:  # a text is infilled
                allowed[WORDS : self.codes] = True
                allowed[EOS] = inside > 0
            else:
                allowed[{follows}.get(own[last], [PAD])] = True
            row[~allowed] = -torch.inf
        return scores
'''.strip()


def _grammar() -> str:
    """The grammar of ``tokens/markup.py`` as code that needs nothing of racm3."""
    v = Vocabulary
    names = {v.pad: "PAD", v.eos: "EOS", v.doc: "DOC", v.end: "END", v.text: "TEXT", v.image: "IMAGE"}
    names |= {v.infill_start: "INFILL", v.text_start: "WORDS"}

    def listed(ids: Sequence[int]) -> str:
        return f"[{', '.join(names[id_] for id_ in ids)}]"

    written = {
        "names": ", ".join(names.values()),
        "ids": ", ".join(map(str, names)),
        "words": str(v.text_start),
        "after_part": listed(AFTER_PART),
        "follows": f"{{{', '.join(f'{names[id_]}: {listed(after)}' for id_, after in FOLLOWS.items())}}}",
    }
    code = TEMPLATE
    for name, text in written.items():
        code = code.replace(f"{{{name}}}", text)
    return code


GRAMMAR = _grammar()
"""In the card of every exported model, and in docs/interop.md."""

CARD = """---
library_name: transformers
pipeline_tag: any-to-any
tags: [racm3, multimodal, retrieval, text-to-image, image-to-text]
---

# A racm3 generator

Reads and writes documents of texts and pictures, retrieved documents before the one it completes. A picture is {codes}
of {image_size} codes, `<image:0>` and on; racm3's image tokenizer turns them into pixels. Without retrieval and without
the grammar below it is only half of what it is; racm3 has the rest.
{filled}
    <doc><text>a fox in the snow<image>        a picture is written on
    <doc><text><mask:0><image>...</doc><infill:0>        a caption is infilled

```python
{grammar}
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer("<doc><text>a fox in the snow<image>", return_tensors="pt")
grammar = DocumentGrammar(folder)
ids = model.generate(**prompt, max_new_tokens=grammar.count, do_sample=False, logits_processor=[grammar])
codes = ids[0, -grammar.count :] - grammar.codes
```
"""
