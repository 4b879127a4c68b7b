"""One training step: racm3 against ``Qwen3ForCausalLM`` under the transformers Trainer and in a plain PyTorch loop.

Same weights, sequences, optimiser (AdamW), precision, process and thread. The peers get the sequences as rows padded to
the longest of the step, which is their natural form, and run as they come, not compiled; every rate counts real tokens
only. A second ratio gives all sides rows of equal length, so that nothing is packed. The losses of the first steps are
compared before the clock starts, those of the timed ones after. The clock is the process's CPU time: with one thread it
is what an idle core would need.

Peak memory is that of one step of each side in a process of its own, above what it held before the step.

Ends with one JSON line. On a CUDA device: benchmarks/mfu.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.training.loop import native_bfloat16

LR, BETAS, WARMUP_STEPS = 1e-4, (0.9, 0.98), 2
SHAPES = {
    "tiny": GeneratorConfig(300, 32, 2, 2, 2, 16, 64, 512),
    "shipped": GeneratorConfig(5437, 192, 6, 4, 4, 48, 512, 512),
    "125m": GeneratorConfig(16384, 768, 12, 12, 12, 64, 2048, 4096),
    "big-vocabulary": GeneratorConfig(65536, 192, 6, 4, 4, 48, 512, 512),
}
DOCUMENT_TOKENS = 80
"""A caption and a picture of 64 codes."""


class Step:
    """The sequences of one step, random ids: 1 to 3 documents each, of captions that differ in length."""

    def __init__(self, config: GeneratorConfig, tokens: int, seed: int, ragged: bool) -> None:
        rng = np.random.default_rng(seed)
        lengths: list[int] = []
        while not lengths or sum(lengths) + 2 * DOCUMENT_TOKENS <= tokens:
            documents = 1 + len(lengths) % 3 if ragged else 2
            lengths.append(documents * DOCUMENT_TOKENS + (int(rng.integers(-10, 11)) if ragged else 0))
        self.sequences = [torch.from_numpy(rng.integers(1, config.vocabulary_size, n + 1)) for n in lengths]
        self.lengths, self.tokens = lengths, sum(lengths)
        # Ours: end to end.
        self.ids = torch.cat([s[:-1] for s in self.sequences])[None]
        self.targets = torch.cat([s[1:] for s in self.sequences])[None]
        self.offsets = torch.tensor([0, *lengths]).cumsum(0)
        # Theirs: padded rows, and the label -100 where there is none.
        self.rows = torch.zeros(len(lengths), max(lengths) + 1, dtype=torch.long)
        self.labels = torch.full_like(self.rows, -100)
        self.mask = torch.zeros_like(self.rows)
        for i, sequence in enumerate(self.sequences):
            self.rows[i, : len(sequence)] = self.labels[i, : len(sequence)] = sequence
            self.mask[i, : len(sequence)] = 1


class Ours:
    def __init__(self, generator: Generator, bf16: bool) -> None:
        self.generator, self.bf16 = generator.train(), bf16
        self.optimiser = torch.optim.AdamW(generator.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)

    def __call__(self, step: Step) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            hidden = self.generator(step.ids, offsets=step.offsets)
            loss = weighted_cross_entropy(hidden, self.generator, step.targets, torch.ones_like(step.targets)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()


class PlainLoop:
    def __init__(self, model: Qwen3ForCausalLM, bf16: bool) -> None:
        self.model, self.bf16 = model.train(), bf16
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)

    def __call__(self, step: Step) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(input_ids=step.rows, attention_mask=step.mask, labels=step.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()


class UnderTrainer:
    """Steps of one Trainer run, taken one at a time: the Trainer runs in a thread that waits between them."""

    def __init__(self, model: Qwen3ForCausalLM, bf16: bool, steps: list[Step]) -> None:
        self.go, self.done, self.loss = threading.Semaphore(0), threading.Semaphore(0), torch.zeros(())
        outer = self

        class Gate(TrainerCallback):
            def on_step_end(self, *args: object, **kwargs: object) -> None:
                outer.done.release()
                outer.go.acquire()

        class Gated(Trainer):
            def get_train_dataloader(self) -> list[dict[str, Tensor]]:  # type: ignore[override]
                return [{"input_ids": s.rows, "attention_mask": s.mask, "labels": s.labels} for s in steps]

            def training_step(self, *args: object, **kwargs: object) -> Tensor:
                outer.loss = super().training_step(*args, **kwargs)  # type: ignore[arg-type]
                return outer.loss

        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=len(steps),
            learning_rate=LR,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            bf16=bf16,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Gated(model=model, args=arguments, callbacks=[Gate()])
        self.thread = threading.Thread(target=self._run, args=(trainer, torch.get_num_threads()), daemon=True)
        self.started = False

    def _run(self, trainer: Trainer, threads: int) -> None:
        torch.set_num_threads(threads)
        self.go.acquire()
        trainer.train()
        self.done.release()

    def __call__(self, step: Step) -> Tensor:
        """The next step of the list, which must be ``step``."""
        if not self.started:
            self.thread.start()
            self.started = True
        self.go.release()
        self.done.acquire()
        return self.loss


def agree(losses: dict[str, Tensor], bf16: bool) -> bool:
    values = [float(loss) for loss in losses.values()]
    return max(values) - min(values) < (1e-2 if bf16 else 1e-4)


def peer_of(generator: Generator) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(Qwen3Config(**generator.config.to_qwen3(), use_cache=False))
    model.load_state_dict(generator.state_dict())
    return model


def compare(shape: str, tokens: int, rounds: int, ragged: bool, bf16: bool) -> tuple[float, bool]:
    """Ratio of our tokens/s to the faster peer's, and whether the losses agreed."""
    torch.manual_seed(0)
    config = SHAPES[shape]
    steps = [Step(config, tokens, seed, ragged) for seed in range(WARMUP_STEPS + rounds)]
    generator = Generator(config)
    sides: dict[str, Callable[[Step], Tensor]] = {
        "trainer": UnderTrainer(peer_of(generator), bf16, steps),
        "plain loop": PlainLoop(peer_of(generator), bf16),
        "racm3": Ours(generator, bf16),
    }
    generator.train_fast(compile=True, recompute_layers=False)
    equal = True
    for step in steps[:WARMUP_STEPS]:
        losses = {name: side(step) for name, side in sides.items()}
        equal &= agree(losses, bf16)
        print("  losses " + ", ".join(f"{name} {float(loss):.5f}" for name, loss in losses.items()), flush=True)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in steps[WARMUP_STEPS:]:
        losses = {}
        for name, side in sides.items():
            started = time.process_time()
            losses[name] = side(step)
            times[name].append((time.process_time() - started) / step.tokens)
        equal &= agree(losses, bf16)
    rates = {name: 1 / min(values) for name, values in times.items()}
    ratio = rates["racm3"] / max(rate for name, rate in rates.items() if name != "racm3")
    padding = 1 - steps[0].tokens / steps[0].rows[:, 1:].numel()
    print(
        f"{shape}, {'bf16' if bf16 else 'float32'}, {'packed' if ragged else 'rows of equal length'}, "
        f"{steps[0].tokens} real tokens, {padding:.0%} padding for the peers: "
        + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        + f" tokens/s; ratio {ratio:.2f}",
        flush=True,
    )
    return ratio, equal


def peak_bytes(side: str, tokens: int) -> None:
    """Print the bytes that one step adds to the process's resident memory at its peak."""
    torch.manual_seed(0)
    config, bf16 = SHAPES["big-vocabulary"], native_bfloat16()
    generator = Generator(config)
    work = Ours(generator, bf16) if side == "racm3" else PlainLoop(peer_of(generator), bf16)
    work(Step(config, 160, 0, True))  # so that optimiser state and libraries are there before
    step = Step(config, tokens, 1, True)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = resident("VmRSS")
    work(step)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_ratio(tokens: int, threads: int) -> float:
    peaks = {}
    for side in ("racm3", "plain loop"):
        command = [sys.executable, __file__, "--peak", side, "--tokens", str(tokens), "--threads", str(threads)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[side] = int(out.split()[-1])
    print(
        "peak memory of a step at vocabulary 65,536: " + ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in peaks.items())
    )
    return peaks["racm3"] / peaks["plain loop"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--shape", choices=SHAPES, help="compare this shape only")
    parser.add_argument("--tokens", type=int, help="tokens of a step; by default 3,840, and 960 for 125m")
    parser.add_argument("--peak", choices=("racm3", "plain loop"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        peak_bytes(given.peak, given.tokens)
        return
    result: dict[str, object] = {"loss_equal": True}
    auto = native_bfloat16()
    runs = [("shipped", given.rounds, auto, True), ("shipped", given.rounds, auto, False)]
    runs += [("shipped", given.rounds, False, True)] if auto else []
    runs += [("125m", min(given.rounds, 3), auto, True), ("125m", min(given.rounds, 3), auto, False)]
    for shape, rounds, bf16, ragged in runs:
        if given.shape not in (None, shape):
            continue
        ratio, equal = compare(shape, given.tokens or (960 if shape == "125m" else 3840), rounds, ragged, bf16)
        result["loss_equal"] = bool(result["loss_equal"]) and equal
        key = shape.replace("125m", "m125") + ("" if bf16 == auto else "_float32") + ("" if ragged else "_unpacked")
        result[f"{key}_ratio"] = round(ratio, 2)
    if given.shape is None:
        result["peak_memory_ratio"] = round(peak_ratio(given.tokens or 3840, given.threads), 3)
    print(json.dumps(result | {"precision": "bf16" if auto else "float32", "threads": given.threads}))


if __name__ == "__main__":
    main()
