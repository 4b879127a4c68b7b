from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from racm3.errors import CheckpointError
from racm3.training.average import Average
from racm3.training.checkpoint import Checkpoints, read_manifest, tensors_of
from racm3.training.distributed import connect
from racm3.training.optimiser import OptimiserConfig, build_optimisers
from tests.training.toy import Toy

OPTIMISER = OptimiserConfig(lr=1e-2, muon_lr=1e-2)
IDENTITY = {"optimiser.betas": (0.9, 0.98)}


class State:
    """A model after ``steps`` steps, with all that belongs to it."""

    def __init__(self, steps: int, model: nn.Module | None = None, muon: bool = True, average: bool = True) -> None:
        self.model = model or Toy()
        config = OPTIMISER if muon else OptimiserConfig()
        self.optimisers = build_optimisers(self.model.named_parameters(), config)
        self.average = Average(self.model, 0.9) if average else None
        for step in range(steps):
            self.model(torch.full((3, 8), step + 1.0)).sum().backward()
            for optimiser in self.optimisers:
                optimiser.step()
                optimiser.zero_grad()
            if self.average:
                self.average.update()

    def save(self, folder: Path, step: int) -> Checkpoints:
        checkpoints = Checkpoints(folder, connect(), IDENTITY)
        checkpoints.save(step, self.model, self.optimisers, self.average)
        return checkpoints

    def restore(self, folder: Path) -> int:
        return Checkpoints(folder, connect(), IDENTITY).restore(self.model, self.optimisers, self.average)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, State)
        one, another = (tensors_of(state.model, state.optimisers, state.average) for state in (self, other))
        return one.keys() == another.keys() and all(torch.equal(value, another[name]) for name, value in one.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2 and 3, of which the last two are kept."""
    for step in (1, 2, 3):
        State(step).save(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_read_back(folder: Path) -> None:
    assert names(folder) == ["step-000000002", "step-000000003"]
    state = State(0)
    assert state.restore(folder) == 3
    assert state == State(3)
    assert state.model.tied.weight is state.model.table.weight
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_one_run_at_a_time(folder: Path) -> None:
    with Checkpoints(folder, connect(), IDENTITY):
        with pytest.raises(CheckpointError, match=f"another process is training in {folder.parent}; wait for it"):
            Checkpoints(folder, connect(), IDENTITY).__enter__()
    with Checkpoints(folder, connect(), IDENTITY) as checkpoints:
        state = State(0)
        assert checkpoints.restore(state.model, state.optimisers, state.average) == 3


def test_the_same_step_is_written_once(folder: Path) -> None:
    checkpoints = State(3).save(folder, 4)
    before = (folder / "step-000000004" / "manifest.json").stat().st_ino
    state = State(3)
    checkpoints.save(4, state.model, state.optimisers, state.average)
    assert (folder / "step-000000004" / "manifest.json").stat().st_ino == before


def test_a_parameter_that_never_had_a_gradient_has_no_state(tmp_path: Path) -> None:
    states = []
    for steps in (2, 0):
        model = Toy()
        model.body.layers[1].requires_grad_(False)  # type: ignore[index, union-attr]
        states.append(State(steps, model))
    states[0].save(tmp_path, 2)
    assert states[1].restore(tmp_path) == 2
    assert states[0] == states[1]


def test_a_disk_that_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", refuse)
        with pytest.raises(CheckpointError, match=r"step-000000004 cannot be read or written: (.|\n)*No space left"):
            State(4).save(folder, 4)
    assert State(0).restore(folder) == 3


def test_no_checkpoint(tmp_path: Path) -> None:
    assert State(0).restore(tmp_path) == 0
    unfinished = tmp_path / "step-000000001.part"
    unfinished.mkdir()
    (unfinished / "__0_0.distcp").write_bytes(b"half of it")
    assert State(0).restore(tmp_path) == 0
    assert names(tmp_path) == []


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: list[Callable[[Path], None]] = [flip_a_bit, cut_short, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_used(
    folder: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder / "step-000000003" / name)
    state = State(0)
    assert state.restore(folder) == 2
    assert state == State(2)
    said = capsys.readouterr().err
    assert said.startswith(f"WARNING: the checkpoint {folder / 'step-000000003'} is damaged (")
    assert name in said or name == "manifest.json"
    kept, aside = names(folder)
    assert kept == "step-000000002"
    assert aside.startswith("step-000000003.damaged-")
    State(3).save(folder, 3)
    assert State(0).restore(folder) == 3
    assert len(names(folder)) == 3


def test_a_changed_manifest_is_damage(folder: Path) -> None:
    file = folder / "step-000000003" / "manifest.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"step": 3', '"step": 9'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"not as it was written: manifest.json"):
        read_manifest(file.parent)


def test_nothing_but_damage_is_an_error_and_stays(folder: Path) -> None:
    for path in folder.iterdir():
        (path / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is good: .*step-000000003 is damaged"):
            State(0).restore(folder)
    assert names(folder) == ["step-000000002", "step-000000003"]


@pytest.mark.parametrize(
    ("state", "different"),
    [
        (lambda: State(0, Toy(9)), r"average.body.layers.0.bias is \(9,\) here and \(8,\) there"),
        (lambda: State(0, average=False), "average.body.layers.0.bias is missing here"),
        (lambda: State(0, muon=False), "optimiser.body.layers.0.weight.exp_avg is .* here and missing there"),
    ],
)
def test_the_checkpoint_of_another_model_is_refused(folder: Path, state: Callable[[], State], different: str) -> None:
    with pytest.raises(CheckpointError, match=f"was written by another model: {different}"):
        state().restore(folder)


def test_the_checkpoint_of_another_run_is_refused(folder: Path) -> None:
    state = State(0)
    other = Checkpoints(folder, connect(), {"optimiser.betas": (0.9, 0.99), "seed": 1})
    with pytest.raises(CheckpointError, match=r"optimiser.betas was \[0.9, 0.98\] and is \[0.9, 0.99\]; seed was None"):
        other.restore(state.model, state.optimisers, state.average)
    assert state == State(0)


def test_a_run_of_before_a_setting_was_renamed_goes_on(tmp_path: Path) -> None:
    state = State(2)
    old = Checkpoints(tmp_path, connect(), {"start": "scenes"})
    old.save(2, state.model, state.optimisers, state.average)
    new = State(0)
    renamed = Checkpoints(tmp_path, connect(), {"init_from": "scenes"})
    assert renamed.restore(new.model, new.optimisers, new.average) == 2
    with pytest.raises(CheckpointError, match="init_from was 'scenes' and is 'other'"):
        Checkpoints(tmp_path, connect(), {"init_from": "other"}).restore(new.model, new.optimisers, new.average)


def test_the_manifest_says_what_it_is(folder: Path) -> None:
    facts = read_manifest(folder / "step-000000003")
    assert (facts["step"], facts["identity"]) == (3, json.loads(json.dumps(IDENTITY)))
    assert sorted(facts["files"]) == [".metadata", "__0_0.distcp"]
