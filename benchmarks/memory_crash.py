"""Kill -9 a writer over and over while another process reads, cut the power, fill the disk, take permissions away,
flip bits, and count what was lost.

A writer adds, replaces, removes, syncs and compacts at random. It notes what it is about to do and, once the memory has
acknowledged it, that it is done. After every kill the memory must hold exactly what was acknowledged; of the step that
was broken off, all or nothing. A reader checks that whatever it finds is whole, and that it finds whatever was
acknowledged before it looked. A power cut is simulated by cutting off a newest file at a random byte.

Faults are a file that may not be read, and a full disk (no file may grow beyond a limit). A bit is flipped in any file
of the memory but Lance's log and its hint, which hold nothing of a user's: `check` finds it, and who reads is told, or
reads what was put in.

Ends with one JSON line: kills, lost (acknowledged documents that are not there, or not as they were), torn (steps half
done, and documents that fail their hash), wrong_reads, power_cuts, recovered; faults, rolled_back_by_reader (times that
a reader moved or changed a file), enospc, enospc_lost (documents that a full disk took); flips, flips_found (by
`check`), silent_wrong (flips by which a search or a document is another one, and nothing is said).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from racm3.data import Item
from racm3.document import Document, Image
from racm3.errors import MemoryStoreError
from racm3.memory.check import check
from racm3.memory.memory import Memory
from racm3.retriever.ingest import sync

D = 32
NAMES = 300
"""Ids that steps draw from: few enough that documents are replaced and removed all the time."""
State = dict[str, int]
"""Which version of which document is there: the whole content of a memory follows from it."""


def item(name: str, number: int) -> Item:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Item(name, Document.of(f"{name} {number}", Image(pixels)), {"number": number}, "crash")


def vector(name: str, number: int) -> np.ndarray:
    made = np.random.default_rng([number, *name.encode()]).standard_normal(D).astype(np.float32)
    return made / np.linalg.norm(made)


def vectors(items: Iterable[Item]) -> np.ndarray:
    rows = [vector(i.id, i.metadata["number"]) for i in items]
    return np.stack(rows) if rows else np.zeros((0, D), np.float32)


class StandIn:
    """What `sync` needs of an encoder."""

    fingerprint = "crash"
    dimension = D

    def embed(self, documents: list[Document]) -> np.ndarray:
        names = (document.text.split() for document in documents if document.text)
        return np.stack([vector(name, int(number)) for name, number in names])


# The writer --------------------------------------------------------------------------------------------------------


def after(state: State, step: dict[str, Any]) -> State:
    """The state that a step leads to."""
    if step["do"] == "put":
        return {**state, **step["documents"]}
    if step["do"] == "remove":
        return {name: number for name, number in state.items() if name not in step["names"]}
    return step["documents"] if step["do"] == "sync" else state


def draw_step(state: State, chance: random.Random, number: int) -> dict[str, Any]:
    """A random step; every document that it writes gets the version ``number``."""
    kind = chance.choices(["put", "remove", "sync", "compact"], [6, 3, 2, 1])[0]
    if kind == "put":
        return {"do": kind, "documents": {f"d{chance.randrange(NAMES)}": number for _ in range(chance.randint(1, 40))}}
    if kind == "remove" and state:
        return {"do": kind, "names": chance.sample(sorted(state), min(len(state), chance.randint(1, 30)))}
    if kind == "sync" and state:
        kept = {name: old for name, old in state.items() if chance.random() < 0.9}
        return {"do": kind, "documents": {**kept, **{f"d{chance.randrange(NAMES)}": number for _ in range(10)}}}
    return {"do": "compact"}


def take_step(memory: Memory, step: dict[str, Any]) -> None:
    if step["do"] == "put":
        items = [item(*document) for document in step["documents"].items()]
        memory.put(items, vectors(items))
    elif step["do"] == "remove":
        memory.remove(step["names"])
    elif step["do"] == "sync":
        sync(memory, StandIn(), (item(*document) for document in step["documents"].items()))  # type: ignore[arg-type]
    else:
        memory.compact()


def write(path: Path, journal: Path, seed: int) -> None:
    """Step after step, each noted before it begins and when it is acknowledged, until killed."""
    chance = random.Random(seed)
    steps = read_journal(journal)
    state: State = {}
    for step, done in steps:
        state = after(state, step) if done else state
    memory = Memory.open(path)
    with journal.open("a", encoding="utf-8") as notes:
        for number in range(len(steps), 1_000_000):
            step = draw_step(state, chance, number)
            notes.write(json.dumps(step) + "\n")
            notes.flush()
            take_step(memory, step)
            state = after(state, step)
            notes.write("done\n")
            notes.flush()


def read_journal(journal: Path) -> list[tuple[dict[str, Any], bool]]:
    """The steps begun, and whether each was acknowledged."""
    steps: list[tuple[dict[str, Any], bool]] = []
    for line in journal.read_text(encoding="utf-8").splitlines(keepends=True):
        if line == "done\n":
            steps[-1] = (steps[-1][0], True)
        elif line.endswith("}\n"):
            steps.append((json.loads(line), False))
    return steps


# The reader --------------------------------------------------------------------------------------------------------


def read(path: Path, journal: Path, counts: Any, stop: Any) -> None:
    """Look for documents that are there, until told to stop; counts = (reads, wrong reads)."""
    chance, memory = random.Random(0), Memory.open(path)
    while not stop.is_set():
        before = read_journal(journal)
        state: State = {}
        for step, done in before:
            state = after(state, step) if done else state
        if not state:
            continue
        name = chance.choice(sorted(state))
        (ranking,) = memory.search(vector(name, state[name])[None], 5)
        try:
            found = memory.get(ranking.ids)
        except MemoryStoreError:  # removed between the two
            found = []
        whole = all(same(i) for i in found)
        untouched = not any(touches(step, name) for step, done in [before[-1], *read_journal(journal)[len(before) :]])
        seen = ranking.ids[:1] == [name] and abs(float(ranking.scores[0]) - 1) < 1e-5
        with counts.get_lock():
            counts[0] += 1
            counts[1] += not whole or (untouched and not seen)


def touches(step: dict[str, Any], name: str) -> bool:
    return step["do"] == "sync" or name in step.get("documents", ()) or name in step.get("names", ())


def same(found: Item) -> bool:
    return found == item(found.id, found.metadata["number"])


# The judge ---------------------------------------------------------------------------------------------------------


def held(memory: Memory) -> State:
    """What a memory holds; a document that is not whole has the number -1."""
    memory.refresh()
    right = dict(zip(memory.ids, memory.vectors, strict=True))
    state = {}
    for found in memory.items():
        number = found.metadata["number"]
        whole = same(found) and np.array_equal(right[found.id], vector(found.id, number))
        state[found.id] = number if whole else -1
    return state


def judge(path: Path, journal: Path) -> tuple[int, int]:
    """Lost documents and torn steps. What is found is written down as the state to go on from."""
    state: State = {}
    begun: dict[str, Any] | None = None
    for step, done in read_journal(journal):
        state, begun = (after(state, step), None) if done else (state, step)
    now, torn = held(Memory.open(path)), 0
    goals = [state] if begun is None else [state, after(state, begun)]
    lost = sum(now.get(name) not in [goal.get(name) for goal in goals] for goal in goals for name in goal)
    if begun is not None and begun["do"] == "sync":  # a step a batch: each document old or new
        torn += sum(now.get(name) not in [goal.get(name) for goal in goals] for name in now)
    else:
        torn += now not in goals
    found = check(path)
    torn += len(found.damaged) + (found.sound != len(now))
    with journal.open("a", encoding="utf-8") as notes:
        notes.write("\n" + json.dumps({"do": "sync", "documents": now}) + "\ndone\n")
    return lost, torn


def crash(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill a writer ``kills`` times, each at a random moment, with a reader beside it."""
    path, journal = folder / "memory", folder / "journal"
    Memory.create(path, StandIn.fingerprint, D)
    journal.touch()
    chance, processes = random.Random(seed), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.memory_crash"])
    counts, stop = processes.Array("q", 2), processes.Event()
    reader = processes.Process(target=read, args=(path, journal, counts, stop))
    reader.start()
    lost = torn = 0
    for kill in range(kills):
        begun = len(read_journal(journal))
        writer = processes.Process(target=write, args=(path, journal, seed + kill))
        writer.start()
        while len(read_journal(journal)) == begun and writer.is_alive():
            time.sleep(0.005)  # it is up
        time.sleep(chance.expovariate(1 / 0.15))
        assert writer.is_alive(), "the writer ended by itself"
        writer.kill()
        writer.join()
        more_lost, more_torn = judge(path, journal)
        lost, torn = lost + more_lost, torn + more_torn
    stop.set()
    reader.join()
    steps = read_journal(journal)
    print(f"{kills} kills in {len(steps)} steps, {sum(not done for _, done in steps)} of them broken off")
    print(f"{counts[0]} reads; the reader ended with {reader.exitcode}")
    return {"kills": kills, "lost": lost, "torn": torn, "wrong_reads": counts[1] + (reader.exitcode != 0)}


def power_cuts(folder: Path, cuts: int, seed: int = 0) -> dict[str, int]:
    """Cut off a newest file ``cuts`` times; the version before the last must open, whole, and go on."""
    chance, recovered = random.Random(seed), 0
    path, spare = folder / "cut", folder / "spare"
    memory, state = Memory.create(path, StandIn.fingerprint, D), dict[str, int]()
    for number in range(cuts):
        step = draw_step(state, chance, number)
        while step["do"] in ("sync", "compact"):
            if step["do"] == "compact":
                memory.compact()
            step = draw_step(state, chance, number)
        there = set(path.rglob("*"))
        take_step(memory, step)
        shutil.rmtree(spare, ignore_errors=True)
        shutil.copytree(path, spare)
        new = [spare / file.relative_to(path) for file in set(path.rglob("*")) - there]
        manifest = min((spare / "_versions").glob("*.manifest"))
        written = [file for file in new if file.is_file() and file.parent.name in ("data", "_deletions")]
        cut = {chance.choice([manifest, *written]), chance.choice([manifest, *written])}
        for file in cut:
            os.truncate(file, chance.randrange(file.stat().st_size))
        spoilt = any("checksums" not in file.parts for file in cut)  # a checksum that is cut off takes nothing with it
        right = state if spoilt else after(state, step)
        try:
            opened = Memory.open(spare)
            recovered += held(opened) == right
            opened.put([item("next", number)], vectors([item("next", number)]))
            assert held(Memory.open(spare)) == {**right, "next": number}
        except (MemoryStoreError, AssertionError) as error:
            print(f"cut {number}: {error}")
            recovered -= 1
        state = after(state, step)
    return {"power_cuts": cuts, "recovered": recovered}


# Faults ------------------------------------------------------------------------------------------------------------


def filled(path: Path, chance: random.Random) -> tuple[Memory, State]:
    """A memory with several files of documents, lists of deletions and versions."""
    memory, state = Memory.create(path, StandIn.fingerprint, D), dict[str, int]()
    for number in range(6):
        step = {"do": "put", "documents": {f"d{chance.randrange(NAMES)}": number for _ in range(20)}}
        take_step(memory, step)
        state = after(state, step)
    gone = {"do": "remove", "names": chance.sample(sorted(state), 10)}
    take_step(memory, gone)
    return memory, after(state, gone)


def stored(path: Path) -> dict[str, bytes]:
    """Every file of a memory but the lock."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "writer.lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def in_a_child(run: Any, *arguments: Any) -> None:
    """Run it where its limits and its user end with it."""
    child = multiprocessing.get_context("spawn").Process(target=run, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == 0, f"{run.__name__} ended with {child.exitcode}"


def read_as_nobody(path: Path) -> None:
    import lance  # noqa: F401  # neither may be readable for that user

    if os.getuid() == 0:
        os.setuid(65534)
    try:
        memory = Memory.open(path)
        held(memory)
    except MemoryStoreError:
        return
    raise AssertionError("what may not be read was passed over")


def write_on_a_full_disk(path: Path, limit: int, seed: int) -> None:
    import resource

    chance, memory = random.Random(seed), Memory.open(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for number in range(100, 106):
        step = {"do": "put", "documents": {f"new{chance.randrange(NAMES)}": number for _ in range(20)}}
        try:
            take_step(memory, chance.choice([step, {"do": "compact"}]))
        except MemoryStoreError:
            pass


def faults(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Take the right to read a file away, then let no file grow, ``count`` times each."""
    chance, moved, lost = random.Random(seed), 0, 0
    os.chmod(folder, 0o755)
    path = folder / "faults"
    _, state = filled(path, chance)
    for name in (path, *path.rglob("*")):
        os.chmod(name, 0o777)  # or a reader could move nothing anyway
    for _ in range(count):
        before = stored(path)
        newest = min(name for name in before if name.endswith(".manifest") and name.startswith("_versions"))
        file = path / chance.choice([newest, *(name for name in before if name.startswith(("data/", "_deletions/")))])
        os.chmod(file, 0)
        in_a_child(read_as_nobody, path)
        os.chmod(file, 0o777)
        moved += stored(path) != before
    for number in range(count):
        in_a_child(write_on_a_full_disk, path, chance.choice([0, 100, 1000, 4000, 8000]), seed + number)
        now = held(Memory.open(path))
        lost += sum(now.get(name) != version for name, version in state.items()) + len(check(path).damaged)
    return {"faults": count, "rolled_back_by_reader": moved, "enospc": count, "enospc_lost": lost}


def flips(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Flip a bit of a file, look what readers see and what `check` finds, and flip it back."""
    chance, found, wrong = random.Random(seed), 0, 0
    path = folder / "flips"
    memory, state = filled(path, chance)
    queries = vectors([item(*document) for document in state.items()])
    right = [(ranking.ids, ranking.scores.tolist()) for ranking in memory.search(queries, 5)]
    known = check(path).damaged
    assert known == [], known
    names = [name for name in stored(path) if not name.startswith("_transactions") and "hint" not in name]
    for _ in range(count):
        file = path / chance.choice(names)
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        whole = file.read_bytes()
        file.write_bytes(content)
        said = bool(_told(lambda: found_damage(path)))
        found += said
        seen = _told(lambda: observed(Memory.open(path), queries))
        if not isinstance(seen, str) and seen != (state, right):
            wrong += 1
            print(f"silent: {file.relative_to(path)}; check {'finds' if said else 'does not find'} it")
        elif not said:
            print(f"not found by check, and harmless: {file.relative_to(path)}")
        file.write_bytes(whole)
    return {"flips": count, "flips_found": found, "silent_wrong": wrong}


def found_damage(path: Path) -> bool:
    return bool(check(path).damaged)


def observed(memory: Memory, queries: np.ndarray) -> Any:
    return held(memory), [(ranking.ids, ranking.scores.tolist()) for ranking in memory.search(queries, 5)]


def _told(run: Any) -> Any:
    """What it gives; or what it, or the log, says is wrong."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("racm3.memory")
    log.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        seen = run()
    except MemoryStoreError as error:
        return str(error)
    finally:
        log.removeHandler(handler)
    return told[0] if told else seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--power-cuts", type=int, default=100)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.getLogger("racm3").setLevel(logging.ERROR)  # that a version was moved aside is expected here
    with tempfile.TemporaryDirectory() as folder:
        result = crash(Path(folder), asked.kills, asked.seed)
        result |= power_cuts(Path(folder), asked.power_cuts, asked.seed)
        result |= faults(Path(folder), asked.faults, asked.seed)
        print(json.dumps({**result, **flips(Path(folder), asked.flips, asked.seed)}))


if __name__ == "__main__":
    main()
