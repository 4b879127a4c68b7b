"""Model folder: models that belong together, and the only code that knows the files of such a folder.

    image-tokenizer/   encoder/   memory/   shared by the generators beside them
    generator/         vanilla/   ...       each with config.json and model.safetensors (Qwen3's layout), tokenizer.json
                                            and racm3.json: sizes of the vocabulary, codes of a picture, grid, run
    judge/                                  of the built-in world alone

Importing this module imports neither torch nor transformers, so that folders can be named and checked quickly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from racm3.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from racm3.generator.model import Generator
    from racm3.retriever.encoder import Encoder
    from racm3.tokens.image_tokenizer import ImageTokenizer
    from racm3.tokens.markup import Markup
    from racm3.tokens.text_tokenizer import TextTokenizer

__all__ = ["FACTS", "SCENES", "SHIPPED", "ModelFolder"]

SCENES = Path(__file__).parent / "weights" / "scenes"
"""The shipped models of the built-in world; "scenes" stands for it wherever a folder of models is given."""
SHIPPED = ("image-tokenizer", "encoder", "generator", "vanilla", "judge")
"""The models in it."""
FACTS = "racm3.json"


@dataclass(frozen=True)
class ModelFolder:
    """The folder ``path``, and the one of its generators that is called ``name``. Nothing is read until asked for."""

    path: Path = SCENES
    name: str = "generator"

    @classmethod
    def open(cls, models: str | Path = "scenes", generator: str = "generator") -> ModelFolder:
        """A folder that is there; "scenes" is the shipped one. Raises CheckpointError if there is none."""
        folder = SCENES if str(models) == "scenes" else Path(models)
        if not folder.is_dir():
            raise CheckpointError(f"there is no model folder {folder}; give a folder, or 'scenes' for the shipped one")
        return cls(folder, generator)

    @classmethod
    def around(cls, generator: Path) -> ModelFolder:
        """The folder in which the folder of a generator lies, whether or not either is there yet."""
        return cls(generator.parent, generator.name)

    # Where things are ------------------------------------------------------------------------------------------------

    @property
    def image_tokenizer_path(self) -> Path:
        return self.path / "image-tokenizer"

    @property
    def encoder_path(self) -> Path:
        return self.path / "encoder"

    @property
    def memory_path(self) -> Path:
        return self.path / "memory"

    @property
    def generator_path(self) -> Path:
        return self.path / self.name

    # What is in them -------------------------------------------------------------------------------------------------

    @property
    def has_facts(self) -> bool:
        """Whether the generator is one of racm3. A language model of words alone has no facts beside its weights."""
        return (self.generator_path / FACTS).is_file()

    @property
    def markup(self) -> Markup:
        """How the generator writes documents: its vocabulary, and the codes of a picture.

        Raises CheckpointError if the generator is none of racm3, or damaged.
        """
        from racm3.tokens.markup import Markup
        from racm3.tokens.vocabulary import Vocabulary

        if not self.has_facts:
            raise CheckpointError(
                f"{self.generator_path} is not a generator folder of racm3: there is no {FACTS} in it"
            )
        file = self.generator_path / FACTS
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            vocabulary = Vocabulary(facts["text_size"], facts["image_size"])
            return Markup(vocabulary, facts["codes_per_image"], facts.get("text_ids", 0))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged: {error}; copy or train the generator again") from error

    def text(self) -> TextTokenizer:
        """The generator's text tokenizer. Raises CheckpointError."""
        from racm3.tokens.text_tokenizer import TextTokenizer

        return TextTokenizer.load(self.generator_path / "tokenizer.json")

    def generator(self) -> Generator:
        """Raises CheckpointError if it is missing, incomplete or damaged."""
        from racm3.generator.model import Generator

        return Generator.from_pretrained(self.generator_path).eval()

    def image_tokenizer(self) -> ImageTokenizer:
        """Raises CheckpointError if it is missing, damaged or of an unknown kind."""
        from racm3.tokens.image_tokenizer import load_image_tokenizer

        return load_image_tokenizer(self.image_tokenizer_path)

    def encoder(self) -> Encoder:
        """Raises CheckpointError if it is missing, incomplete or damaged."""
        from racm3.retriever.encoder import Encoder

        return Encoder.from_pretrained(self.encoder_path)

    def save_generator(
        self,
        generator: Generator,
        text: TextTokenizer,
        markup: Markup,
        grid: tuple[int, int],
        run: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write the generator's folder, its weights in ``dtype`` if given. ``run``: the settings of its training."""
        generator.save_pretrained(self.generator_path, dtype)
        text.save(self.generator_path / "tokenizer.json")
        facts = markup.vocabulary.to_dict() | {"codes_per_image": markup.codes_per_image, "grid": list(grid)}
        if markup.text_ids:
            facts["text_ids"] = markup.text_ids
        facts |= {} if run is None else {"run": dict(run)}
        (self.generator_path / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
