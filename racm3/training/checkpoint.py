"""Checkpoints of a training run: whole, checked and sharded, so that no kill and no bad disk costs more than minutes.

    checkpoints/step-000001200/   *.distcp and .metadata of torch.distributed.checkpoint, manifest.json with checksums

One process writes what any number of processes reads, and the other way round. A checkpoint is written to a new folder,
synced to disk, given its manifest and only then renamed; the last two are kept. Tensors are all that it holds: settings
come from the run, and a checkpoint of other settings, data or another model is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from racm3.errors import CheckpointError
from racm3.training.average import Average
from racm3.training.distributed import Processes
from racm3.util.config import RENAMED

KEPT = 2
"""Checkpoints that are kept: the newest, and one to fall back on if that is damaged."""


class Checkpoints:
    """The checkpoints of one run in ``folder``; ``identity`` names what must be the same when it goes on.

    A context manager: within it no other run can use the folder, and at its end all is on disk.
    """

    def __init__(self, folder: Path, processes: Processes, identity: Mapping[str, Any]) -> None:
        self.folder, self.processes = folder, processes
        self.identity = json.loads(json.dumps(dict(identity)))  # as it will be read back
        self.newest: Path | None = None
        # Several processes write in the background, and their messages must not meet those of the training.
        self.group = dist.new_group(backend="gloo") if processes.size > 1 else None
        self.background = ThreadPoolExecutor(1)
        self.pending: Future[Any] | None = None
        self.lock = FileLock(folder / "lock")

    def __enter__(self) -> Self:
        """Raises CheckpointError if another run is at work in the folder."""
        self.processes.from_main(self._take)
        return self

    def __exit__(self, *_: object) -> None:
        self.background.shutdown()
        self.lock.release()

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise CheckpointError(
                f"another process is training in {self.folder.parent}; wait for it, stop it, or choose another --out"
            ) from error

    def restore(self, model: nn.Module, optimisers: list[torch.optim.Optimizer], average: Average | None = None) -> int:
        """Load the newest good checkpoint and return its step; 0 if there is none.

        A damaged one is said on stderr and moved aside, and the one before is taken. Raises CheckpointError if there
        are only damaged ones, or the newest good one is of another run or model.
        """
        found = self.processes.from_main(self._find)
        if found is None:
            return 0
        path, step = found
        reader = dcp.FileSystemReader(path)
        stored = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}  # type: ignore[union-attr]
        _make_room(model, optimisers, stored)
        tensors = tensors_of(model, optimisers, average)
        own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if own != stored:
            name = min(own.items() ^ stored.items())[0]
            raise CheckpointError(
                f"{path} was written by another model: {name} is {own.get(name, 'missing')} here and "
                f"{stored.get(name, 'missing')} there; choose another --out or delete {self.folder}"
            )
        with _clear_errors(path):
            dcp.load(tensors, storage_reader=reader, process_group=self.group, no_dist=self.group is None)
        self.newest = path
        return step

    def save(
        self,
        step: int,
        model: nn.Module,
        optimisers: list[torch.optim.Optimizer],
        average: Average | None = None,
    ) -> None:
        """Write the checkpoint of ``step``: at once in one process, else in the background from a copy.

        Raises CheckpointError if it, or the one before, cannot be written.
        """
        self.wait()
        path = self.folder / f"step-{step:09d}"
        if path == self.newest:
            return
        part, tensors = path.with_suffix(".part"), tensors_of(model, optimisers, average)
        writer = dcp.FileSystemWriter(part)
        if self.group is None:
            with _clear_errors(path):
                dcp.save(tensors, storage_writer=writer, no_dist=True)
                self._seal(part, path, step)
        else:
            written: Future[Any] = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)  # type: ignore[assignment]
            if self.processes.main:  # its part ends when all have written theirs

                def finish() -> None:
                    written.result()
                    self._seal(part, path, step)

                self.pending = self.background.submit(finish)
            else:
                self.pending = written
        self.newest = path

    @property
    def busy(self) -> bool:
        """Whether one is still being written."""
        return self.pending is not None and not self.pending.done()

    def wait(self) -> None:
        """Return when what was begun is on disk. Raises CheckpointError if it could not be written."""
        if self.pending is not None:
            with _clear_errors(self.newest):
                self.pending.result()
            self.pending = None

    def _find(self) -> tuple[Path, int] | None:
        """The newest good checkpoint and its step; the first process looks for all."""
        for unfinished in self.folder.glob("*.part"):
            shutil.rmtree(unfinished)
        faults: dict[Path, str] = {}
        for path in sorted(self._all(), reverse=True):
            try:
                manifest = read_manifest(path)
            except CheckpointError as error:
                faults[path] = str(error)
                continue
            self._refuse_others(path, manifest["identity"])
            for damaged, fault in faults.items():
                aside = damaged.rename(f"{damaged}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
                print(f"WARNING: {fault}; moved to {aside}, going on from {path}", file=sys.stderr)
            return path, manifest["step"]
        if faults:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is good: {'; '.join(faults.values())}. Delete it to begin anew"
            )
        return None

    def _all(self) -> Iterable[Path]:
        return (path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())

    def _refuse_others(self, path: Path, stored: Mapping[str, Any]) -> None:
        identity = {RENAMED.get(name, name): value for name, value in stored.items()}
        other = [
            f"{name} was {identity.get(name)!r} and is {self.identity.get(name)!r}"
            for name in sorted(identity.keys() | self.identity.keys())
            if identity.get(name) != self.identity.get(name)
        ]
        if other:
            raise CheckpointError(
                f"{path} belongs to another run: {'; '.join(other)}. Give what it was, choose another --out, or delete "
                f"{self.folder} to begin anew"
            )

    def _seal(self, part: Path, path: Path, step: int) -> None:
        """Give the files in ``part`` their manifest and make them a checkpoint."""
        files = {file.name: checksum(file) for file in sorted(part.iterdir())}
        facts = {"step": step, "identity": self.identity, "files": files}
        manifest = {"facts": facts, "checksum": _checksum_of_facts(facts)}
        with open(part / "manifest.json", "w", encoding="utf-8") as out:
            json.dump(manifest, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        sync_folder(part)
        part.rename(path)
        sync_folder(self.folder)
        for old in sorted(self._all())[:-KEPT]:
            shutil.rmtree(old)


def read_manifest(path: Path) -> dict[str, Any]:
    """Step, identity and files of a checkpoint. Raises CheckpointError if anything in it is not as it was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        facts: dict[str, Any] = manifest["facts"]
        wrong = [] if manifest["checksum"] == _checksum_of_facts(facts) else ["manifest.json"]
        wrong += [name for name, digest in facts["files"].items() if checksum(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error})") from error
    if wrong:
        raise CheckpointError(f"the checkpoint {path} is damaged (not as it was written: {', '.join(wrong)})")
    return facts


def tensors_of(
    model: nn.Module, optimisers: Iterable[torch.optim.Optimizer], average: Average | None
) -> dict[str, Tensor]:
    """Everything that training changes, by name; tied weights once. The tensors are those in use, not copies."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    kept = model.state_dict().keys()
    tensors = {
        f"model.{name}": value.detach()
        for name, value in chain(model.named_parameters(), model.named_buffers())
        if name in kept
    }
    for optimiser in optimisers:
        for parameter, values in optimiser.state.items():
            tensors |= {f"optimiser.{names[parameter]}.{key}": value for key, value in values.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.weights.items()}
    return tensors


def _make_room(model: nn.Module, optimisers: Iterable[torch.optim.Optimizer], stored: Mapping[str, object]) -> None:
    """Let the optimisers make state for the parameters that have some in ``stored``; what it holds is to be loaded."""
    for name, parameter in model.named_parameters():
        if any(key.startswith(f"optimiser.{name}.") for key in stored):
            parameter.grad = torch.zeros_like(parameter)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


@contextmanager
def _clear_errors(path: Path | None) -> Iterator[None]:
    """What goes wrong on disk as a CheckpointError, and without the warning that one process gets for being alone."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except (OSError, CheckpointException) as error:
        raise CheckpointError(
            f"{path} cannot be read or written: {error}; make room or mend the disk, then the same command goes on "
            "from the checkpoint before"
        ) from error


def checksum(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _checksum_of_facts(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
