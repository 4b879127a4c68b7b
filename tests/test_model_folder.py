"""A folder of models: what is written is what is read, byte for byte, and naming one costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from racm3.errors import CheckpointError
from racm3.generator.model import Generator, GeneratorConfig
from racm3.model_folder import SCENES, SHIPPED, ModelFolder
from racm3.tokens.markup import Markup
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

TEXT = TextTokenizer.train(["a fox in the snow"], 260)
MARKUP = Markup(Vocabulary(TEXT.size, 9), 4)
FACTS = """{
 "text_size": 260,
 "image_size": 9,
 "codes_per_image": 4,
 "grid": [
  2,
  2
 ]
}
"""


def test_a_generator_is_read_back(tmp_path: Path) -> None:
    generator = Generator(GeneratorConfig(MARKUP.vocabulary.size, 16, 1, 2, 2, 8, 16, context_tokens=32))
    folder = ModelFolder.around(tmp_path / "vanilla")
    assert folder == ModelFolder(tmp_path, "vanilla")
    assert not folder.has_facts
    folder.save_generator(generator, TEXT, MARKUP, (2, 2))
    assert (tmp_path / "vanilla" / "racm3.json").read_text(encoding="utf-8") == FACTS
    opened = ModelFolder.open(tmp_path, "vanilla")
    assert opened.has_facts
    assert opened.markup == MARKUP
    assert opened.text().fingerprint == TEXT.fingerprint
    for name, weight in opened.generator().state_dict().items():
        assert torch.equal(weight, generator.state_dict()[name]), name
    folder.save_generator(generator, TEXT, MARKUP, (2, 2), {"alpha": 0.1}, torch.float16)
    assert folder.markup == MARKUP
    assert '"run": {\n  "alpha": 0.1\n }\n}\n' in (tmp_path / "vanilla" / "racm3.json").read_text(encoding="utf-8")


def test_the_shipped_folder() -> None:
    shipped = ModelFolder.open("scenes")
    assert shipped == ModelFolder() == ModelFolder.open(SCENES)
    assert {folder.name for folder in shipped.path.iterdir()} == set(SHIPPED)
    assert shipped.markup == ModelFolder.open("scenes", "vanilla").markup
    assert shipped.image_tokenizer().codebook_size == shipped.markup.vocabulary.image_size


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model folder .*none; give a folder, or 'scenes'"):
        ModelFolder.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match="generator is not a generator folder of racm3"):
        _ = ModelFolder.open(tmp_path).markup


def test_naming_a_folder_imports_no_torch() -> None:
    code = "import sys, racm3.model_folder as m; m.ModelFolder.open(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
