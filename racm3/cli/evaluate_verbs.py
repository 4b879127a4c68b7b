"""Verbs that say how good the models are, whether all is well installed, and that give a model to other tools."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Literal

from tyro.conf import arg

from racm3.cli.option_types import FileArgument, Folder, Models, OptionalFile, OptionalFolder, Overrides
from racm3.cli.verb import Verb
from racm3.util.files import new_folder


class EvaluateScenes(Verb, name="evaluate scenes"):
    """Measure the models on the built-in world: the last line printed is everything as JSON."""

    # The first 100 pictures of each test split instead of all: at most 10 minutes on two cores.
    quick: bool = False
    out: OptionalFile = None  # Where to write the JSON as well.
    memory: OptionalFolder = None  # Where the world's memory is, or is to be made; a temporary folder by default.
    models: Models = "scenes"
    set: Overrides = ()  # Settings of racm3.evaluation.scenes_protocol.Protocol, such as n=20 drawing.samples=1.

    def run(self) -> None:
        from rich.console import Console

        from racm3.evaluation.scenes_protocol import QUICK, QUICK_TRIALS, Protocol, evaluate_scenes, tables
        from racm3.util.config import override

        protocol = override(replace(Protocol(), n=QUICK, trials=QUICK_TRIALS) if self.quick else Protocol(), self.set)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        results = evaluate_scenes(self.models, self.memory, protocol)
        Console().print(*tables(results))
        line = json.dumps(results)
        if self.out:
            self.out.write_text(line + "\n", encoding="utf-8")
        print(line)


class EvaluateCoco(Verb, name="evaluate coco"):
    """Measure a model on MS-COCO: FID of 30,000 drawings, CIDEr-D of 5,000 captions. The same command goes on."""

    data: FileArgument  # Karpathy's dataset_coco.json, beside the folders of pictures that it names.
    memory: Folder  # What to retrieve from; it may hold none of the pictures under examination.
    models: Models
    out: Folder  # Where drawings, captions and result.json go.
    # The TorchScript network of FID: inception-2015-12-05.pt of StyleGAN2-ADA. Without it, no FID.
    features: OptionalFile = None
    generator: str = "generator"  # The name of the generator's folder in models.
    # Settings of racm3.evaluation.coco_protocol.CocoProtocol, such as drawn=1000 drawing.samples=1 drawing.k=0.
    set: Overrides = ()

    def run(self) -> None:
        from racm3.evaluation.coco_protocol import CocoProtocol, evaluate_coco
        from racm3.util.config import override

        protocol = override(CocoProtocol(), self.set)
        given = self.data, self.models, self.memory, self.out, self.features
        print(json.dumps(evaluate_coco(*given, protocol, self.generator)))


class EvaluateCompare(Verb, name="evaluate compare"):
    """Print the scores of two result files side by side; exit status 2 unless they were measured alike."""

    one: FileArgument  # A result file of another evaluate command or of the study.
    other: FileArgument  # The one to compare it with.
    # Fields of the protocol that may differ, for they are what is compared, such as drawing.k.
    but: Annotated[tuple[str, ...], arg(metavar="[FIELD ...]")] = ()

    def run(self) -> None:
        from racm3.evaluation.protocol import check_comparable, numbers, read_result

        first, second = read_result(self.one), read_result(self.other)
        check_comparable(first["protocol"], second["protocol"], (str(self.one), str(self.other)), self.but)
        ours, theirs = numbers(first), numbers(second)
        for name in dict.fromkeys([*ours, *theirs]):
            shown = (f"{scores[name]:.4g}" if name in scores else "-" for scores in (ours, theirs))
            print("{:>10} {:>10}  {}".format(*shown, name))


class Doctor(Verb, name="doctor"):
    """Say what is installed, what is broken and what to do about it; exit status 1 if something needed is broken."""

    def run(self) -> int:
        from racm3.doctor import doctor

        return doctor()


class Export(Verb, name="export"):
    """Write a generator for other tools to open: docs/interop.md says how."""

    out: Folder  # Where to; a folder that is empty or not there yet.
    models: Models = "scenes"
    generator: str = "generator"  # The name of the generator's folder in models.
    format: Literal["transformers"] = "transformers"  # What opens it: AutoModelForCausalLM of transformers, and vLLM.

    def run(self) -> None:
        from racm3.export import export_transformers
        from racm3.model_folder import ModelFolder

        models = ModelFolder.open(self.models, self.generator)
        with new_folder(self.out) as folder:
            export_transformers(models, folder)
        print(f"wrote {self.out}")
