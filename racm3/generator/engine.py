"""Engine: completes sequences in one batch, which they join and leave at every step.

A *request* is one or more contexts, a constraint that says what may come, and how to draw; its *output* depends on the
request alone, not on what else is in the batch. On a CPU that is exact, bit by bit (``model_runner.py`` says how), but
for one thing: without a C compiler, sequences that share a context kept once sum their attention in another order.

    submit    a request waits until there is room in the batch and in memory
    schedule  requests that wait join, in order, while rows and memory last
    prefill   what prompts have in common is read once (``prefill.py``): by samples of one prompt, by the streams of
              guidance behind the same retrieved documents, by requests that arrive together. If enough rows share it,
              it is kept once as well. Retrieved documents stay read for later requests, as long as there is room in the
              prefix cache
    sample    logits of the part of the vocabulary that is wanted -> filters -> one token a sequence -> its constraint,
              and one more for each guess of the draft, up to the first that is wrong
    decode    the rows of sequences that are done leave; the others read their tokens, all in one pass (``batch.py``),
              and a draft of those that probably come (``drafting.py``)

The first request compiles ``step.c``, where there is a C compiler, and lays out the weights: a second or two. One
thread calls ``step`` (or ``run``, ``stream``); ``submit`` and ``cancel`` may be called from any.

Letters in shapes: R rows (streams in the batch), B sequences, V vocabulary or the wanted part of it, D width.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from racm3.document import Modality
from racm3.errors import CacheLimitError, ConfigError, InputError, MarkupError, PromptTooLongError
from racm3.generator.batch import Batch, Draw, choose_tokens, room_of
from racm3.generator.drafting import Drafter
from racm3.generator.kv_cache import PrefixCache, rounded, token_bytes
from racm3.generator.model import Generator
from racm3.generator.model_runner import ModelRunner, Weights
from racm3.generator.prefill import prefill
from racm3.generator.sequence import Context, Event, RunningSequence, SequenceOutput, SequenceRequest
from racm3.tokens.vocabulary import Vocabulary
from racm3.util.weights_version import WeightsVersion

__all__ = ["Context", "Engine", "Event", "SequenceOutput", "SequenceRequest"]

PREFIX_BYTES = 256 * 2**20
"""Keys and values of retrieved documents that stay for later requests (ours: of the shipped model, 150 pairs of
documents), but no more than one in ``PREFIX_SHARE`` of the bytes that all keys and values may take."""
PREFIX_SHARE = 8

OnStep = Callable[[int, int], None]
"""Called with the tokens drawn and the most that will be."""


class Engine:
    """Completes and scores sequences with one generator, at most ``max_rows`` streams at a time.

    ``weights``: how decoding holds them, by default as the generator does; it has a copy of its own, made at the first
    request and again when the generator's have changed. ``cache_bytes``: the most memory that keys and values may take,
    by default three quarters of what is free when the engine is made; ``prefix_bytes``: what those of retrieved
    documents may take besides, for later requests. ``drafts``: whether to guess tokens ahead, which changes the speed
    alone.
    Raises ConfigError if the generator has another vocabulary, or ``max_rows`` is too small.
    """

    def __init__(
        self,
        generator: Generator,
        vocabulary: Vocabulary,
        max_rows: int = 64,
        weights: Weights | None = None,
        cache_bytes: int | None = None,
        prefix_bytes: int | None = None,
        drafts: bool = True,
    ) -> None:
        if generator.config.vocabulary_size != vocabulary.size:
            raise ConfigError(
                f"the generator knows {generator.config.vocabulary_size} ids, the vocabulary has {vocabulary.size}; "
                "they must be saved together"
            )
        if max_rows < 2:
            raise ConfigError(f"max_rows is {max_rows}; it must be 2 or above, for a guided request needs two rows")
        self.generator, self.vocabulary, self.max_rows, self.drafts = generator, vocabulary, max_rows, drafts
        as_held: Weights = "bfloat16" if generator.lm_head.weight.dtype == torch.bfloat16 else "float32"
        self.weights: Weights = weights or as_held
        self.cache_bytes = cache_bytes if cache_bytes is not None else _free_bytes(self.device) * 3 // 4
        self._prefixes = PrefixCache(
            min(PREFIX_BYTES, self.cache_bytes // PREFIX_SHARE) if prefix_bytes is None else prefix_bytes
        )
        self._waiting: deque[RunningSequence] = deque()
        self._batch = Batch()
        self._numbers = itertools.count()
        self._runner: ModelRunner | None = None
        self._weights_version = WeightsVersion(())

    @property
    def device(self) -> torch.device:
        return self.generator.lm_head.weight.device

    def run(self, requests: Sequence[SequenceRequest], on_step: OnStep | None = None) -> list[SequenceOutput]:
        """The output of every request, in order.

        ``on_step`` hears of the progress after every step. Raises as ``submit`` does, and MarkupError if a constraint
        allows nothing.
        """
        sequences = self._submit_all(requests)
        most = sum(request.constraint.max_steps for request in requests)
        for _ in self._steps(sequences):
            if on_step is not None:
                left = sum(one.request.constraint.max_steps - one.steps for one in sequences if not one.done)
                on_step(most - left, most)
        return [sequence.output for sequence in sequences]

    def stream(self, requests: Sequence[SequenceRequest]) -> Iterator[Event]:
        """Every token as it is drawn; ``Event.request`` is the index in ``requests``. Closing the iterator cancels.

        Raises as ``run`` does.
        """
        sequences = self._submit_all(requests)
        index = {sequence.number: i for i, sequence in enumerate(sequences)}
        for events in self._steps(sequences):
            for event in events:
                if event.request in index:
                    yield event._replace(request=index[event.request])

    def submit(self, request: SequenceRequest) -> RunningSequence:
        """Let a request wait for its turn; ``step`` takes it on.

        Raises PromptTooLongError if a prompt and the longest answer to it exceed the context, InputError if a prompt
        has ids outside the vocabulary, ConfigError if the request has more streams than ``max_rows``, CacheLimitError
        if it does not fit in memory.
        """
        sequence = self._sequence(request, "the request")
        self._waiting.append(sequence)
        return sequence

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """A token or more for every sequence in the batch, after those that wait have joined and those done have left.

        ``Event.request`` is the number of the sequence. Nothing is left to do when no event comes. A step that fails
        cancels the whole batch.
        """
        try:
            self._decode()
            self._schedule()
            return self._sample() if self._batch.sequences else []
        except BaseException:  # halfway through a step, rows and tokens disagree
            for sequence in self._batch.sequences:
                sequence.cancel()
            raise

    def estimated_bytes(self, requests: Sequence[SequenceRequest]) -> int:
        """The most memory that keys and values can take if these requests run together and share nothing."""
        return self._bytes([(len(prompt), one.constraint.max_steps) for one in requests for prompt in one.streams])

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The log-probability in nats of every token of each continuation behind its prompt: one (T,) array a pair.

        What pairs have in common is read once, such as the prompt behind which several labels are compared.
        Raises InputError if a prompt or a continuation is empty or has ids outside the vocabulary, or there are not
        equally many, PromptTooLongError if the two together exceed the context.
        """
        if len(prompts) != len(continuations):
            raise InputError(f"{len(prompts)} prompts and {len(continuations)} continuations were given; pair them")
        pairs = [(tuple(prompt), tuple(more)) for prompt, more in zip(prompts, continuations, strict=True)]
        for number, (prompt, more) in enumerate(pairs):
            if not prompt or not more:
                raise InputError(
                    f"pair {number}: the prompt or the continuation is empty; give a token or more of each"
                )
            self._check(prompt + more, 0, f"pair {number}")
        runner = self._current_runner()
        owners: dict[tuple[int, ...], list[int]] = {}  # the last token is not read, so pairs may share all that is
        for number, (prompt, more) in enumerate(pairs):
            owners.setdefault(prompt + more[:-1], []).append(number)
        scores = [np.empty(0)] * len(pairs)
        for portion in self._portions(sorted(owners)):
            for group in prefill(runner, portion):
                for ids, _, pieces in group.prompts:
                    hidden_states = torch.cat(pieces)  # (T, D)
                    for number in owners[ids]:
                        prompt, more = pairs[number]
                        logits = runner.logits(hidden_states[len(prompt) - 1 :], ("text", "image"))  # (T, V)
                        chosen = torch.tensor(more, device=self.device)[:, None]
                        scores[number] = logits.log_softmax(-1).gather(-1, chosen)[:, 0].cpu().numpy()
        return scores

    # The parts of a step ---------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """Drop the rows of sequences that are done; the others read the token drawn last and their drafts."""
        self._batch.drop_done()
        if self._batch.sequences:
            assert self._runner is not None
            rows = sum(len(sequence.rows) for sequence in self._batch.sequences)
            for sequence in self._batch.sequences:
                sequence.guess(rows)
            self._batch.decode(self._runner)

    def _schedule(self) -> None:
        """Take on requests that wait, in order, while rows and memory last."""
        sizes = [size for sequence in self._batch.sequences for size in sequence.sizes]
        new: list[RunningSequence] = []
        while self._waiting:
            sequence = self._waiting[0]
            if not sequence.done:
                sizes += sequence.sizes
                if len(sizes) > self.max_rows or self._bytes(sizes) > self.cache_bytes:
                    break
                new.append(sequence)
            self._waiting.popleft()
        if new:
            self._prefill(new)

    def _prefill(self, sequences: Sequence[RunningSequence]) -> None:
        """Read the prompts of new sequences, what is common to several once, and give their streams rows."""
        runner = self._current_runner()
        self._batch.sequences += sequences
        owners: dict[tuple[int, ...], list[tuple[RunningSequence, int]]] = {}
        for sequence in sequences:
            for number, stream in enumerate(sequence.streams):
                owners.setdefault(stream, []).append((sequence, number))
        self._batch.add(runner, prefill(runner, list(owners), self._prefixes), owners)

    def _sample(self) -> list[Event]:
        """Draw one token for every sequence, and for every guess of its draft the one behind it. Draws that want the
        same part of the vocabulary go together."""
        hidden_states = self._batch.hidden_states()  # (N, D)
        wanting: dict[tuple[Modality, ...], list[Draw]] = {}
        for sequence in self._batch.sequences:
            for ahead, allowed in enumerate(sequence.allowed()):
                wanted = self.vocabulary.modalities(allowed)
                if not wanted:
                    raise MarkupError("a constraint allows no id at all; a constraint that is complete says so by done")
                wanting.setdefault(wanted, []).append(Draw(sequence, ahead, allowed))
        drawn: dict[int, dict[int, tuple[int, float]]] = {one.number: {} for one in self._batch.sequences}
        assert self._runner is not None
        for wanted, draws in wanting.items():
            reach = self.vocabulary.reach(wanted)
            may = torch.from_numpy(np.stack([draw.allowed[reach] for draw in draws])).to(self.device)  # (B, V)
            rows = [row + draw.ahead for draw in draws for row in draw.sequence.rows]
            every = rows == list(range(len(hidden_states)))
            logits = self._runner.logits(hidden_states if every else hidden_states[rows], wanted)
            chosen, log_probabilities = choose_tokens(draws, logits, may)
            for draw, id, value in zip(draws, chosen.tolist(), log_probabilities.tolist(), strict=True):
                drawn[draw.sequence.number][draw.ahead] = id + reach.start, value
        events: list[Event] = []
        for sequence in self._batch.sequences:
            own = drawn[sequence.number]
            events += sequence.accept([own[ahead] for ahead in range(len(own))])
        self._batch.settle()
        return events

    # What they need --------------------------------------------------------------------------------------------------

    def _submit_all(self, requests: Sequence[SequenceRequest]) -> list[RunningSequence]:
        sequences = [self._sequence(request, f"request {number}") for number, request in enumerate(requests)]
        self._waiting.extend(sequences)
        return sequences

    def _steps(self, sequences: Sequence[RunningSequence]) -> Iterator[list[Event]]:
        """Step until these are done; they are cancelled if that ends early."""
        try:
            while any(not sequence.done for sequence in sequences):
                yield self.step()
        finally:
            for sequence in sequences:
                if not sequence.done:
                    sequence.cancel()
            self._batch.drop_done()

    def _sequence(self, request: SequenceRequest, what: str) -> RunningSequence:
        sequence = RunningSequence(request, next(self._numbers))
        if self.drafts:
            before = [id for context in reversed(request.contexts) for id in context.prompt]  # its own prompt last
            sequence.drafter = Drafter(before, request.constraint.max_steps, request.row)
        for stream in sequence.streams:
            self._check(stream, request.constraint.max_steps, what)
        if len(sequence.streams) > self.max_rows:
            raise ConfigError(
                f"{what} has {len(sequence.streams)} streams; max_rows is {self.max_rows}, so give it fewer contexts"
            )
        needed = self._bytes(sequence.sizes)
        if needed > self.cache_bytes:
            raise CacheLimitError(
                f"{what} needs up to {needed / 1e9:.3g} GB for keys and values; {self.cache_bytes / 1e9:.3g} GB may be "
                "taken. Use fewer contexts, retrieve fewer documents, or set weights='bfloat16'"
            )
        return sequence

    def _check(self, prompt: tuple[int, ...], steps: int, what: str) -> None:
        context = self.generator.config.context_tokens
        if len(prompt) + steps > context:
            raise PromptTooLongError(
                f"{what}: {len(prompt)} tokens and up to {steps} new ones exceed the generator's context of {context}. "
                "Shorten the text, ask for fewer tokens or retrieve fewer documents"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocabulary.size:
            wrong = next(id for id in prompt if not 0 <= id < self.vocabulary.size)
            raise InputError(f"{what}: {self.vocabulary.name(wrong)}; allowed are 0 to {self.vocabulary.size - 1}")

    def _bytes(self, streams: Sequence[tuple[int, int]]) -> int:
        """``estimated_bytes`` of streams of (tokens, new tokens)."""
        # Rows are counted three times: room is doubled when it does not suffice, and the old one copied into it.
        tokens = sum(rounded(tokens) + 3 * room_of(tokens + steps) for tokens, steps in streams)
        return tokens * token_bytes(self.generator.config, self._cache_dtype)

    @property
    def _cache_dtype(self) -> torch.dtype:
        return torch.float32 if self.weights == "float32" else torch.bfloat16

    def _portions(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Prompts in groups whose keys and values fit in memory, at most ``max_rows`` in one."""
        most = self.cache_bytes // token_bytes(self.generator.config, self._cache_dtype)
        portion: list[tuple[int, ...]] = []
        tokens = 0
        for prompt in prompts:
            needed = 2 * rounded(len(prompt))  # its own cache, and the one of what it shares
            if portion and (len(portion) == self.max_rows or tokens + needed > most):
                yield portion
                portion, tokens = [], 0
            portion.append(prompt)
            tokens += needed
        if portion:
            yield portion

    def _current_runner(self) -> ModelRunner:
        """The runner, made anew if the generator's weights have changed; not while sequences are on their way."""
        version = WeightsVersion(self.generator.parameters())
        if self._runner is None or (not self._batch.sequences and version != self._weights_version):
            self._runner = ModelRunner(self.generator, self.vocabulary.image_start, self.weights)
            self._weights_version = version
            self._prefixes = PrefixCache(self._prefixes.limit_bytes)
        return self._runner


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # counts what the system's own caches would give back
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
