"""Verbs that train the models, and that say what a training takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from racm3.cli.option_blocks import Configured, Training
from racm3.cli.option_types import DataArgument, Folder, OptionalFile, OptionalFolder

if TYPE_CHECKING:
    from racm3.training.models import Runs


class TrainImageTokenizer(Training, name="train image-tokenizer"):
    """Train the built-in image tokenizer. The same command resumes a broken run."""

    data: DataArgument  # Captioned pictures.
    out: Folder  # Where the model, the state of its training and the prepared pictures go.

    def run(self) -> None:
        from racm3.training.image_tokenizer_recipe import ImageTokenizerRun
        from racm3.training.models import make_image_tokenizer

        run = self.settings(ImageTokenizerRun, lambda: self.runs.image_tokenizer)
        make_image_tokenizer(self.data, run, self.out)
        print(f"wrote {self.out}")


class TrainEncoder(Training, name="train encoder"):
    """Train a small CLIP, which retrieves. The same command resumes a broken run."""

    data: DataArgument  # Captioned pictures.
    out: Folder  # Where the model, the state of its training and the prepared pictures go.
    tokenizer: OptionalFile = None  # The tokenizer.json for its texts; without one, it is learnt from the captions.

    def run(self) -> None:
        from racm3.training.encoder_recipe import EncoderRun
        from racm3.training.models import make_encoder

        run = self.settings(EncoderRun, lambda: self.runs.encoder)
        make_encoder(self.data, run, self.out, self.tokenizer)
        print(f"wrote {self.out}")


class TrainGenerator(Training, name="train generator"):
    """Train a generator, and before it whatever it needs; what is there is reused. The same command resumes.

    Without --image-tokenizer and --encoder, those beside --out are used, or trained there on the same data; a memory of
    the data is made there too.
    """

    data: DataArgument
    out: Folder  # Where the model and the state of its training go, such as MODELS/generator.
    # What turns pictures into codes: ours or a JanusVQVAE. By default MODELS/image-tokenizer.
    image_tokenizer: OptionalFolder = None
    # What retrieves: ours or a CLIP. By default MODELS/encoder; a run with retrieved_shares=[1] needs none.
    encoder: OptionalFolder = None
    tokenizer: OptionalFile = None  # The tokenizer.json for texts; without one, it is learnt from the captions.
    # Where the data's ids, vectors and neighbours are kept, a folder or s3://... By default OUT/prepared.
    prepared: OptionalFolder = None

    def run(self) -> None:
        from shlex import quote

        from racm3.data import read
        from racm3.training.distributed import connect
        from racm3.training.models import make_all

        prepared = None if self.prepared is None else str(self.prepared)
        runs = generator_runs(self)
        memory = make_all(self.data, runs, self.out, self.image_tokenizer, self.encoder, self.tokenizer, prepared)
        if not connect().main:
            return
        print(f"wrote {self.out}")
        if memory and self.image_tokenizer is None and self.out.name == "generator":  # a whole folder of models
            models, drawn = self.out.parent, self.out.parent / "drawn.png"
            caption = next(item.document.text for item in read(self.data) if item.document.text)
            print("try it:")
            print(f"  racm3 generate {quote(caption)} --models {models} --memory {memory} --out {drawn}")
            print(f"  racm3 caption {drawn} --models {models} --memory {memory}")


class TrainJudge(Configured, name="train judge"):
    """Train the judge that tells what a picture of the built-in world shows. The same command resumes a broken run."""

    out: Folder  # Where the model and the state of its training go.

    def run(self) -> None:
        from racm3.scenes.judges import JudgeRun, train_judge

        train_judge(self.settings(JudgeRun, JudgeRun), self.out)
        print(f"wrote {self.out}")


def _assumptions() -> Any:
    from racm3.training.training_plan import Assumptions

    return Assumptions


class TrainPlan(Training, name="train plan"):
    """Print what a generator's training takes: FLOPs, memory, data, hours, cost; exit status 2 if it does not fit."""

    assumed: Annotated[Any, arg(name="", constructor_factory=_assumptions)]

    def run(self) -> None:
        from racm3.training import training_plan

        made = training_plan.plan(generator_runs(self), self.assumed)
        print("\n".join(training_plan.lines(made)))
        training_plan.check(made)


def generator_runs(training: Training) -> Runs:
    """The runs of a preset, with the generator's as ``training`` says."""
    from racm3.training.generator_recipe import GeneratorRun

    return replace(training.runs, generator=training.settings(GeneratorRun, lambda: training.runs.generator))
