"""From a WebDataset shard into a memory with an encoder of CLIP ViT-B/32's size (random weights cost the same).

Documents are read, decoded, embedded and added as `racm3 memory add` does it, and every batch is on disk before the
next one begins. What is not spent inside the encoder's forward passes is overhead: reading the shard, decoding,
resizing, tokenising, encoding the stored pictures, hashing, writing, flushing.

Times are of this process's own processor time where --cpu is given: on a machine that others use too, it is what can
be compared. Ends with one JSON line: documents/s, and the share of the overhead.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from racm3.data import Item, read, write_webdataset
from racm3.document import Document, Image
from racm3.memory.memory import Memory
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import ingest

SIZE_PX = 256
WORDS = "a photo of the two red blue small old wooden house tree river dog boat street people near under sky".split()


def vit_b_32() -> Encoder:
    """An encoder with the shapes of openai/clip-vit-base-patch32, but for its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return Encoder.new(
        tokenizer,
        dimension=512,
        text={**text, "max_position_embeddings": 77},
        vision={**vision, "image_size": 224, "patch_size": 32},
    )


def documents(count: int) -> list[Item]:
    """Captioned pictures that compress about as photographs do: noise of several scales."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        picture = np.zeros((SIZE_PX, SIZE_PX, 3))
        for side in (4, 16, 64, 128):
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            picture += np.asarray(PIL.Image.fromarray(noise).resize((SIZE_PX, SIZE_PX), PIL.Image.Resampling.BICUBIC))
        caption = " ".join(rng.choice(WORDS, 12))
        items.append(Item(f"{number:06d}", Document.of(caption, Image((picture / 4).astype(np.uint8))), {}, ""))
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="count processor time instead of time")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu else time.perf_counter
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    encoder = vit_b_32()
    inside = 0.0

    def timed(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            started = clock()
            out = forward(*args, **kwargs)
            inside += clock() - started
            return out

        return run

    encoder.model.get_text_features = timed(encoder.model.get_text_features)
    encoder.model.get_image_features = timed(encoder.model.get_image_features)
    with tempfile.TemporaryDirectory() as folder:
        items = documents(asked.count)
        (shard,) = write_webdataset(items, Path(folder) / "shards")
        memory = Memory.create(Path(folder) / "memory", encoder.fingerprint, encoder.dimension)
        encoder.embed([item.document for item in items[:8]])  # the first pass is slower
        inside, started = 0.0, clock()
        done = ingest(memory, encoder, read(shard))
        taken = clock() - started
        assert done.added == len(memory) == asked.count
        assert memory.get([items[-1].id])[0].document == items[-1].document
        print(f"{asked.count} documents in {taken:.1f} s, {inside:.1f} s of them in the encoder")
        size = memory.info().bytes_on_disk / asked.count
        print(f"{size / 1e3:.0f} kB a document on disk, {shard.stat().st_size / asked.count / 1e3:.0f} kB in the shard")
    print(json.dumps({"docs_per_s": round(asked.count / taken, 2), "overhead_share": round(1 - inside / taken, 3)}))


if __name__ == "__main__":
    main()
