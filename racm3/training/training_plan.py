"""What a generator's training takes, before anything starts: FLOPs, memory of each GPU, data, hours and cost.

Memory is not estimated but traced: the real model and loss run one step on tensors without contents, and the bytes that
would have lived are counted. Several GPUs share weights, gradients and optimiser (FSDP2); activations are each one's.

Letters in shapes: B batch, T tokens.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from racm3.errors import ConfigError
from racm3.generator.loss import CHUNK_LOGITS, CHUNK_TOKENS, weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.tokens.image_tokenizer import FSQImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.generator_recipe import GeneratorRun
from racm3.training.init_from import init_text
from racm3.training.models import Runs
from racm3.training.optimiser import Muon, build_optimisers

GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted. Every field is an option of ``racm3 train plan``, and is printed."""

    gpus: int = 1
    """GPUs that share the weights and each step's tokens."""
    tokens: float = 0.0
    """Tokens trained on, main and retrieved; 0: the run's steps times its tokens a step."""
    gpu_memory_gb: float = 80.0
    """Memory of a GPU."""
    reserved_gb: float = 4.0
    """Of each GPU, for its context, communication buffers and fragmentation."""
    gpu_tflops: float = 312.0
    """Dense bfloat16 rate of a GPU; an A100's, by its data sheet."""
    mfu: float = 0.4
    """Share of that rate which the model's own FLOPs reach; computing layers again lowers it."""
    gpu_hour_price: float = 2.0
    """Of one GPU for one hour."""
    caption_tokens: int = 24
    """Text ids of a document."""
    pair_kb: float = 30.0
    """Bytes of a captioned picture as it lies on disk, in thousands; a 256 px JPEG's."""
    epochs: float = 1.0
    """How often a document is the main one of a sequence."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in ("tokens", "reserved_gb", "gpu_hour_price")):
                raise ConfigError(f"{field.name} of a plan is above 0, but {value} was given")
        if self.mfu > 1:
            raise ConfigError(f"mfu is a share, at most 1, but {self.mfu} was given")


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the worst moment of a step."""

    weights: int
    gradients: int
    optimiser: int
    """The moments, and the running average of the weights where there is one."""
    gathered: int
    """Half-precision weights and gradients of the layers at work, fetched from the other GPUs."""
    activations: int
    """Kept for the backward pass."""
    working: int
    """The logits of a chunk of tokens, and whatever else lives for a moment."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Plan:
    """What `plan` finds. Bytes, FLOPs, tokens and documents are totals unless the name says otherwise."""

    assumed: Assumptions
    vocabulary_size: int
    parameters: int
    tokens: float
    steps: int
    tokens_per_gpu: int
    """Of one step, on one GPU at once."""
    flops_per_token: int
    flops: float
    memory: Memory
    memory_recomputed: Memory
    """The same where each layer is computed again in the backward pass."""
    recompute: bool
    """Whether the run does that."""
    documents: float
    raw_bytes: float
    token_cache_bytes: float
    vector_bytes: float
    """Of the documents and of their queries, from which neighbours are found."""
    neighbour_bytes: float
    hours: float
    cost: float

    @property
    def needed_bytes(self) -> float:
        """Of one GPU."""
        return (self.memory_recomputed if self.recompute else self.memory).total + self.assumed.reserved_gb * GB


def plan(runs: Runs, assumed: Assumptions) -> Plan:
    """Work out what ``runs.generator`` takes. Raises ConfigError if a GPU would get less than one sequence a step."""
    run = runs.generator
    with torch.device("meta"):
        image = FSQImageTokenizer(runs.image_tokenizer.model)
        vocabulary = Vocabulary(run.text_ids or init_text(run).size, image.codebook_size)
        generator = Generator(GeneratorConfig(vocabulary_size=vocabulary.size, **dataclasses.asdict(run.model)))
    codes = math.prod(image.grid)
    document = len(Markup(vocabulary, codes).to_ids((TextIds((0,) * assumed.caption_tokens), ImageCodes((0,) * codes))))
    shares = [share / sum(run.retrieved_shares) for share in run.retrieved_shares]
    sequence = document * sum(share * (k + 1) for k, share in enumerate(shares))  # tokens, on average
    # The mean length of the sequence that a token stands in: long ones hold more tokens.
    seen = document**2 * sum(share * (k + 1) ** 2 for k, share in enumerate(shares)) / sequence
    longest = document * len(shares)
    if longest > run.model.context_tokens:
        raise ConfigError(
            f"a main document and {len(shares) - 1} retrieved ones are {longest} tokens, but the context holds "
            f"{run.model.context_tokens}; set model.context_tokens or retrieved_shares"
        )
    parts = assumed.gpus * run.loop.accumulate
    here = run.tokens_per_step // parts
    if here < sequence:
        raise ConfigError(
            f"{run.tokens_per_step} tokens a step in {parts} parts are {here} for each, less than one sequence "
            f"({sequence:.0f} tokens on average); lower gpus or loop.accumulate, or raise tokens_per_step"
        )
    tokens = assumed.tokens or float(run.loop.steps * run.tokens_per_step)
    per_token = generator.flops_per_token(round(seen))
    flops = tokens * per_token
    hours = flops / (assumed.gpus * assumed.gpu_tflops * 1e12 * assumed.mfu) / 3600
    documents = tokens / sequence / assumed.epochs
    chunk = -(-CHUNK_LOGITS // vocabulary.size)
    queries, dimension = 2 * len(run.dropouts), runs.encoder.dimension
    retrieves = len(shares) > 1
    return Plan(
        assumed=assumed,
        vocabulary_size=vocabulary.size,
        parameters=generator.parameter_count,
        tokens=tokens,
        steps=math.ceil(tokens / run.tokens_per_step),
        tokens_per_gpu=here,
        flops_per_token=per_token,
        flops=flops,
        memory=step_memory(generator.config, run, here, assumed.gpus, chunk_tokens=chunk),
        memory_recomputed=step_memory(generator.config, run, here, assumed.gpus, chunk_tokens=chunk, recompute=True),
        recompute=run.recompute_layers,
        documents=documents,
        raw_bytes=documents * assumed.pair_kb * 1e3,
        token_cache_bytes=documents * (document * (2 if vocabulary.size <= 1 << 16 else 4) + 8),
        vector_bytes=documents * (1 + queries) * dimension * 4 * retrieves,
        neighbour_bytes=documents * queries * (len(shares) - 1) * 4,
        hours=hours,
        cost=hours * assumed.gpus * assumed.gpu_hour_price,
    )


def check(made: Plan) -> None:
    """Raises ConfigError, saying what to change, if the plan does not fit into a GPU."""
    if made.needed_bytes <= made.assumed.gpu_memory_gb * GB:
        return
    fits = made.memory_recomputed.total + made.assumed.reserved_gb * GB <= made.assumed.gpu_memory_gb * GB
    cure = "--set recompute_layers=true" if fits and not made.recompute else "more --gpus, or --set loop.accumulate"
    raise ConfigError(
        f"the run needs {made.needed_bytes / GB:.1f} GB of each GPU, but it has {made.assumed.gpu_memory_gb:g}; "
        f"it would fit with {cure}"
    )


# Memory ----------------------------------------------------------------------------------------------------------

Kind = Literal["float32", "bfloat16", "sharded"]
"""How a step computes: in 32 bits, with weights cast to 16 as they are used, or with weights fetched in 16 bits."""


def step_memory(
    config: GeneratorConfig,
    run: GeneratorRun,
    tokens: int,
    gpus: int = 1,
    *,
    recompute: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Memory:
    """The memory of one GPU, or of a CPU, in a step in which it reads ``tokens`` tokens; weights have 32 bits.

    One GPU casts weights as they are used (autocast), or computes in 32 bits where the run says so. Several keep a
    share of the weights each, and fetch them in 16 bits, two layers at a time, the token tables throughout (FSDP2).
    ``chunk_tokens``: so many tokens' logits are made at once. Layers are traced as they are without torch.compile,
    which only lowers the peak.
    """
    kind: Kind = "sharded" if gpus > 1 else "float32" if run.loop.dtype == "float32" else "bfloat16"
    if recompute:  # one layer in full, and the inputs of the others
        one = trace(replace(config, layers=1), tokens, chunk_tokens, kind)
        inputs = (config.layers - 1) * tokens * config.width * (2 if kind == "sharded" else 4)
        traced = Trace(one.peak + inputs, one.kept + inputs, one.gradients)
    else:
        traced = trace(config, tokens, chunk_tokens, kind)
    with torch.device("meta"):
        generator = Generator(config)
        optimisers = build_optimisers(generator.named_parameters(), run.optimiser)
    every, layer = (_bytes(module.parameters()) for module in (generator, generator.model.layers[0]))
    average = every if run.loop.ema else 0
    gradients, activations, gathered = traced.gradients, traced.kept, 0
    if kind == "sharded":
        gradients = every // gpus
        root = every - config.layers * layer
        gathered = root // 2 + 2 * layer // 2 + max(root, layer)  # weights in 16 bits, one unit's gradients in 32
    elif every > traced.peak:
        traced, gradients, activations = Trace(every, 0, every), every, 0
    else:
        activations = min(activations, traced.peak - gradients)
    return Memory(
        weights=every // gpus,
        gradients=gradients,
        optimiser=(sum(_state_bytes(optimiser) for optimiser in optimisers) + average) // gpus,
        gathered=gathered,
        activations=activations,
        working=traced.peak - traced.gradients - activations,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_bytes(optimiser: torch.optim.Optimizer) -> int:
    """Two moments of every weight for AdamW, one for Muon."""
    moments = 1 if isinstance(optimiser, Muon) else 2
    return moments * sum(_bytes(group["params"]) for group in optimiser.param_groups)


@dataclass(frozen=True)
class Trace:
    """Bytes of a forward and backward pass, weights left out."""

    peak: int
    kept: int
    """For the backward pass, at its beginning."""
    gradients: int
    """Of the weights, at the peak; 0 where they are sent away as soon as they are there."""


def trace(config: GeneratorConfig, tokens: int, chunk_tokens: int, kind: Kind) -> Trace:
    """Run one step of ``tokens`` tokens, in rows of at most the context, on tensors without contents."""
    rows = -(-tokens // config.context_tokens)
    with FakeTensorMode():
        generator = Generator(config)
        if kind == "sharded":
            for parameter in generator.parameters():
                parameter.data = parameter.data.bfloat16()
        ids, weights = torch.zeros(rows, tokens // rows + 1, dtype=torch.int64), torch.zeros(rows, tokens // rows)
        live = _Live((*generator.parameters(), *generator.buffers()))
        for parameter in generator.parameters():
            parameter.register_post_accumulate_grad_hook(_send_away if kind == "sharded" else live.count_gradient)
        kept = _Kept(live.known)
        with live, torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
            with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
                hidden = generator(ids[:, :-1])
                loss = weighted_cross_entropy(hidden, generator, ids[:, 1:], weights, chunk_tokens=chunk_tokens).total
        with live:
            loss.backward()
    return Trace(live.peak, kept.bytes, live.gradients_at_peak)


def _send_away(parameter: Tensor) -> None:
    parameter.grad = None


class _Kept:
    """Counts the storages that autograd keeps."""

    def __init__(self, known: weakref.WeakSet[Any]) -> None:
        self.bytes = 0
        self._known = weakref.WeakSet(known)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.bytes += storage.nbytes()
        return tensor


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages made under it, from the operation that makes one until it is freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self.now = self.peak = self.gradients = self.gradients_at_peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        size = storage.nbytes()
        self.known.add(storage)
        weakref.finalize(storage, self._forget, size)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def _forget(self, size: int) -> None:
        self.now -= size

    def count_gradient(self, parameter: Tensor) -> None:
        self.gradients += _bytes([parameter])


# As text -----------------------------------------------------------------------------------------------------------


def lines(made: Plan) -> list[str]:
    """The plan as a table, and what it takes for granted."""
    table = [
        ("vocabulary", f"{made.vocabulary_size:,} ids"),
        ("parameters", f"{made.parameters:,}"),
        ("tokens", f"{made.tokens:.3g} in {made.steps:,} steps, {made.tokens_per_gpu:,} at once on each GPU"),
        ("FLOPs", f"{made.flops:.3g}, {made.flops_per_token:.3g} a token (forward, backward, causal attention)"),
        ("documents", f"{made.documents:.3g}, {made.raw_bytes / GB:,.1f} GB as they lie on disk"),
        ("token cache", f"{made.token_cache_bytes / GB:,.1f} GB"),
        ("vectors", f"{made.vector_bytes / GB:,.1f} GB, {made.neighbour_bytes / GB:,.1f} GB of neighbours"),
        ("time", f"{made.hours:,.1f} hours, {made.hours / 24:,.1f} days"),
        ("cost", f"{made.cost:,.0f}, in the currency of the price"),
        ("", ""),
        ("memory of a GPU, GB", f"{'as it is':>10} {'layers recomputed':>18}"),
    ]
    for field in dataclasses.fields(Memory):
        pair = (getattr(memory, field.name) / GB for memory in (made.memory, made.memory_recomputed))
        table.append((f"  {field.name}", "{:>10.2f} {:>18.2f}".format(*pair)))
    table.append(("  reserved", f"{made.assumed.reserved_gb:>10.2f} {made.assumed.reserved_gb:>18.2f}"))
    pair = (memory.total / GB + made.assumed.reserved_gb for memory in (made.memory, made.memory_recomputed))
    table.append(("  together", "{:>10.2f} {:>18.2f}".format(*pair)))
    table.append(("  the run", f"{'recomputes' if made.recompute else 'does not recompute'} layers"))
    table += [("", ""), ("taken for granted", "")]
    table += [(f"  {name}", f"{value:g}") for name, value in dataclasses.asdict(made.assumed).items()]
    return [f"{name:<22}{value}".rstrip() for name, value in table]
