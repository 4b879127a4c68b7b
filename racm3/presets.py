"""Presets: training runs as functions that return a whole configuration; one derives from another.

    racm3 train generator DATA --preset pictures --out MODELS/generator

A preset holds the three runs of a folder of models, so one name serves image tokenizer, encoder and generator. A
function of your own is a preset as well: ``--preset my_module:my_function``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from racm3.tokens.image_tokenizer import FSQConfig
from racm3.training.encoder_recipe import EncoderRun
from racm3.training.generator_recipe import GeneratorRun, MaskingConfig, ShapeConfig
from racm3.training.image_tokenizer_recipe import ImageTokenizerRun
from racm3.training.loop import LoopConfig
from racm3.training.models import Runs
from racm3.training.optimiser import OptimiserConfig
from racm3.util.registry import Registry

PRESETS: Registry[Callable[[], Runs]] = Registry("preset")
"""By name. One of another package is asked for as MODULE:FUNCTION."""


@PRESETS.register("scenes")
def scenes() -> Runs:
    """The built-in world, on two CPU cores: 64 px to 8 x 8 codes of 4,375, and 3.7M parameters.

    On one otherwise idle core that multiplies bfloat16 in hardware (AMX), with a C++ compiler: about 9 minutes for the
    image tokenizer, 23 for the encoder, and 21 to 25 for the generator's 2,100 steps of 3,840 tokens.

    Alpha is 0.3 and queries are asked whole, where the paper has 0.1 and drops a fifth of them: with captions of a
    handful of words copying is then learnt in fewer steps (`docs/results.md`, *Trainings*).
    """
    return Runs(
        ImageTokenizerRun(loop=LoopConfig(steps=6000)),
        EncoderRun(loop=LoopConfig(steps=1000)),
        GeneratorRun(
            loop=LoopConfig(steps=2100),
            optimiser=OptimiserConfig(lr=3e-3, muon_lr=4e-3, warmup_steps=100),
            alpha=0.3,
            query_dropout=0.0,
            compile=True,
        ),
    )


@PRESETS.register("scenes-vanilla")
def scenes_vanilla() -> Runs:
    """The same size and compute without retrieval: the baseline CM3."""
    usual = scenes()
    return replace(usual, generator=replace(usual.generator, retrieved_shares=(1.0,)))


@PRESETS.register("scenes-tasks")
def scenes_tasks() -> Runs:
    """Goes on from a generator of `scenes`, or from a vanilla one with ``--set retrieved_shares=[1.0]``, to infill, to
    edit and to caption as well: 15 minutes on such a core.

    A quarter of the sequences are still drawn or written on causally, half are to be captioned, and a quarter have a
    rectangle hidden, most of these around what the retrieved documents show and half of them without words. From
    nothing, such a mixture learns to edit and unlearns to draw what is novel (`docs/log.md`).
    """
    usual = scenes()
    return replace(
        usual,
        generator=replace(
            usual.generator,
            init_from="out/models/first",
            loop=LoopConfig(steps=900),
            optimiser=OptimiserConfig(lr=1.5e-3, muon_lr=2e-3, warmup_steps=30),
            masking=MaskingConfig(whole_text_share=0.5, region_share=0.25, around_share=0.7, wordless_share=0.5),
            retrieved_shares=(0.2, 0.35, 0.45),
        ),
    )


@PRESETS.register("pictures")
def pictures() -> Runs:
    """Some hundred captioned pictures of your own: about eight minutes on a core with native bfloat16.

    Everything goes on from the shipped models: after 75 steps the loss on documents held out was 2.1, and 4.4 from
    nothing. The shipped codes are kept, and with them what the generator knows of copying: of the image tokenizer only
    the decoder learns. Nothing is renamed: with so few pictures the codes' own meaning is what is to be learnt, and the
    pictures drawn are whole things sooner (by eye, on the 300 of ``examples/pictures.py``). The loss on documents held
    out rises again from the 200th step on, while what is drawn still gets better.
    """
    usual = scenes()
    return Runs(
        replace(usual.image_tokenizer, init_from="scenes", decoder_only=True, loop=LoopConfig(steps=400)),
        replace(
            usual.encoder,
            init_from="scenes",
            optimiser=OptimiserConfig(lr=3e-4, muon_lr=6e-4, weight_decay=0.05, warmup_steps=10),
            batch_size=128,
            loop=LoopConfig(steps=40),
        ),
        replace(
            usual.generator,
            init_from="scenes",
            rename_share=0.0,
            validation_documents=0.05,
            masking=replace(usual.generator.masking, whole_text_share=0.3),
            optimiser=OptimiserConfig(lr=1e-3, muon_lr=1.5e-3, warmup_steps=20),
            loop=LoopConfig(steps=900, look_every=100),
            tokens_per_step=1920,
        ),
    )


def paper(layers: int, width: int, heads: int, mlp_width: int) -> Runs:
    """The paper's run in one of its sizes: pictures of 1,024 codes, a context of 4,096 tokens.

    Shapes, context and optimiser are the paper's (the optimiser second-hand: Adam 0.9 / 0.98, peak 1e-4, 1,500 warm-up
    steps, linear decay, clip 1), and so is the objective, without what we add to it for small data. Ours:

    - SwiGLU, 8/3 as wide as the model rounded up to 128: as many weights as a twofold MLP of 4 times the width
    - 8,000 codes: 8,192 is no product of levels of at least 5, which finite scalar quantisation wants
    - 49,152 text ids and 2.1 M tokens a step: the paper's are not known
    - an encoder of CLIP ViT-B/32's shape, for those who have none; the paper's is CLIP ViT-L/14: ``--encoder FOLDER``
    """
    optimiser = OptimiserConfig(lr=1e-4, betas=(0.9, 0.98), warmup_steps=1500, decay="linear", clip_norm=1.0)
    image = FSQConfig(
        image_size_px=256,
        patch_px=8,
        levels=(8, 8, 5, 5, 5),
        encoder_width=768,
        encoder_layers=6,
        decoder_width=384,
        decoder_layers=8,
    )
    return Runs(
        ImageTokenizerRun(
            model=image,
            optimiser=OptimiserConfig(lr=3e-4, betas=(0.9, 0.99), warmup_steps=1000, decay="cosine"),
            loop=LoopConfig(steps=200_000),
            batch_size=64,
        ),
        EncoderRun(
            dimension=512,
            image_size_px=224,
            patch_px=32,
            vision_width=768,
            vision_layers=12,
            text_width=512,
            text_layers=12,
            text_tokens=77,
            head_width=64,
            text_ids=49_152,
            optimiser=OptimiserConfig(lr=5e-4, betas=(0.9, 0.98), weight_decay=0.2, warmup_steps=2000, decay="cosine"),
            loop=LoopConfig(steps=100_000),
            batch_size=2048,
        ),
        GeneratorRun(
            model=ShapeConfig(width, layers, heads, heads, width // heads, mlp_width, context_tokens=4096),
            optimiser=optimiser,
            loop=LoopConfig(steps=50_000),
            masking=MaskingConfig(minimum=0, whole_text_share=0.0, region_share=0.0),
            rename_share=0.0,
            text_query_share=0.5,
            text_ids=49_152,
            tokens_per_step=2**21,
            recompute_layers=True,
            compile=True,
        ),
    )


@PRESETS.register("paper-125m")
def paper_125m() -> Runs:
    """The paper's 125M."""
    return paper(layers=12, width=768, heads=12, mlp_width=2048)


@PRESETS.register("paper-350m")
def paper_350m() -> Runs:
    """The paper's 350M."""
    return paper(layers=24, width=1024, heads=16, mlp_width=2816)


@PRESETS.register("paper-760m")
def paper_760m() -> Runs:
    """The paper's 760M."""
    return paper(layers=24, width=1536, heads=16, mlp_width=4096)


@PRESETS.register("paper-1.3b")
def paper_1_3b() -> Runs:
    """The paper's 1.3B."""
    return paper(layers=24, width=2048, heads=32, mlp_width=5504)


@PRESETS.register("paper-2.7b")
def paper_2_7b() -> Runs:
    """The paper's 2.7B."""
    return paper(layers=32, width=2560, heads=32, mlp_width=6912)


@PRESETS.register("finetune-qwen3")
def finetune_qwen3() -> Runs:
    """Go on from Qwen3-0.6B, with its text tokenizer: ``--set init_from=FOLDER``. Codes and special tokens are new.

    For another size of Qwen3 the error says which settings of the shape to change; to plan without the folder,
    ``--set text_ids=151669``. Pictures and optimiser are those of the paper's runs.
    """
    usual = paper_350m()
    return replace(
        usual,
        generator=replace(
            usual.generator,
            model=ShapeConfig(1024, 28, 16, 8, 128, 3072, context_tokens=4096, rope_theta=1e6),
            init_from="Qwen3-0.6B",
            text_ids=0,
            loop=LoopConfig(steps=5000),
            tokens_per_step=2**18,
        ),
    )


def preset(name: str) -> Runs:
    """The runs of that name, or of MODULE:FUNCTION. Raises ConfigError, naming the nearest, if there are none."""
    return PRESETS.get(name)()
