"""Everything that two processes do is done by one pair of them, which starts once; the tests look at what it left."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from racm3.data import write_coco
from racm3.errors import ConfigError, RACM3Error
from racm3.tokens.codec import token_documents
from racm3.tokens.markup import Markup
from racm3.tokens.vocabulary import Vocabulary
from racm3.training.distributed import connect, whole
from racm3.training.generator_recipe import train_generator
from racm3.training.loop import Batch, Metrics
from racm3.training.optimiser import OptimiserConfig, orthogonal, orthogonals
from racm3.training.prepare import learn_text, prepare
from racm3.training.prepared_cache import Cache
from tests.training import test_generator_recipe as generator
from tests.training.test_prepare import items, new_image_tokenizer
from tests.training.toy import LOOP, Toy, ToyRun, curve, in_processes, loss_of, rows, train

OPTIMISER = OptimiserConfig(lr=1e-2, muon_lr=1e-2, warmup_steps=3, decay="none")
RUN = ToyRun(replace(LOOP, steps=50, ema=0.9, look_every=20), OPTIMISER)
SHORT = replace(RUN, loop=replace(RUN.loop, steps=16))
PART = replace(RUN, loop=replace(RUN.loop, steps=8))
HALF = replace(RUN, loop=replace(RUN.loop, steps=5, dtype="bfloat16"))


def run_toy(folder: Path, run: ToyRun) -> None:
    model = Toy()

    def look(step: int) -> dict[str, float]:
        now = whole(model, Toy)
        return {"norm": 0.0 if now is None else now.table.weight.norm().item()}

    gathered = whole(train(folder, run, model, look=look), Toy)
    assert (gathered is None) == (connect().rank > 0)
    if gathered is not None:
        torch.save(gathered.state_dict(), folder / "weights.pt")


def run_generator(folder: Path) -> None:
    made = generator.dataset(), generator.TEXT, generator.MARKUP, generator.GRID
    trained = train_generator(*made, generator.RUN, folder)
    assert (trained is None) == (connect().rank > 0)


def stop_one(folder: Path) -> None:
    """A signal that only the second process gets stops both at the same step."""

    def loss(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        if connect().rank == 1 and given.documents[0].startswith("row 5."):
            signal.raise_signal(signal.SIGTERM)
        return loss_of(model, given, normaliser)

    model = Toy()
    with pytest.raises(KeyboardInterrupt, match="stopped and saved at step 6"):
        train(folder, model=model, loss=loss)


def explode_in_one(folder: Path) -> None:
    """What is not finite in the second process ends both, and both know its documents."""

    def loss(given: Batch, normaliser: float) -> tuple[Tensor, Metrics]:
        value, metrics = loss_of(model, given, normaliser)
        return (value * torch.inf if connect().rank == 1 else value), metrics

    model = Toy()
    with pytest.raises(RACM3Error, match=r"Documents: row 0.1, row 0.3, row 0.5") as raised:
        train(folder, model=model, loss=loss)
    assert "row 0.0" not in str(raised.value)


def prepare_in_the_first(folder: Path) -> None:
    """The second process does not even find the data; it reads what the first has made."""
    data = folder / "data" if connect().main else folder / "nowhere"
    if connect().main:
        write_coco(items(3), data)
    image, cache = new_image_tokenizer(0), Cache(folder / "prepared")
    text = learn_text(data, 300, cache)
    markup = Markup(Vocabulary(text.size, image.codebook_size), 16)
    made = prepare(data, text, image, markup, None, cache)
    expected = token_documents([item.document for item in items(3)], text, image)
    assert [markup.from_ids(ids) for ids in made.ids] == expected


def share_the_matrices() -> None:
    """Each orthogonalises every other matrix, and both have all."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((6, 4), (3, 8), (5, 5))]
    mesh = init_device_mesh("cpu", (2,))
    sharded = [distribute_tensor(matrix, mesh, [Shard(0)]) for matrix in matrices]
    with patch("racm3.training.optimiser.orthogonal", wraps=orthogonal) as worked:
        made = list(orthogonals(sharded))
    assert worked.call_count == (2, 1)[connect().rank]
    for one, given, matrix in zip(made, sharded, matrices, strict=True):
        assert isinstance(one, DTensor)
        assert one.placements == given.placements
        assert torch.equal(one.full_tensor(), orthogonal(matrix))


def as_two(folder: Path) -> None:
    run_toy(folder / "two", RUN)
    run_toy(folder / "two-one", PART)
    run_toy(folder / "one-two", SHORT)
    run_toy(folder / "two-half", HALF)
    run_generator(folder / "generator-two")
    stop_one(folder / "stopped")
    explode_in_one(folder / "exploded")
    share_the_matrices()
    prepare_in_the_first(folder / "shared")
    with pytest.raises(ConfigError, match="does not split: train it in one process"):
        train(folder / "unsplit", splits=False)
    refused = replace(RUN, optimiser=replace(OPTIMISER, lr=1.0))
    with pytest.raises(RACM3Error, match="optimiser.lr was 0.01 and is 1.0"):  # on the one that does not look, too
        run_toy(folder / "two", refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    run_toy(folder / "one", RUN)
    run_toy(folder / "one-half", HALF)
    run_toy(folder / "one-two", PART)
    run_generator(folder / "generator-one")
    in_processes(2, as_two, folder)
    run_toy(folder / "two-one", SHORT)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize(("name", "steps"), [("two", 50), ("one-two", 16), ("two-one", 16)])
def test_two_processes_equal_one_and_read_its_checkpoints(name: str, steps: int, folder: Path) -> None:
    assert len(rows(folder / name)) == steps
    for row, expected in zip(curve(folder / name), curve(folder / "one")[:steps], strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_the_gathered_weights_are_those_of_one_process(folder: Path) -> None:
    for key, value in weights(folder / "one").items():
        assert torch.allclose(weights(folder / "two")[key], value, atol=1e-4), key
    looks = [[row["norm"] for row in rows(folder / name) if "norm" in row] for name in ("one", "two")]
    assert looks[1] == pytest.approx(looks[0], rel=1e-4)
    assert len(looks[0]) == 2


def test_a_checkpoint_of_two_processes_is_sharded(folder: Path) -> None:
    newest = folder / "two" / "checkpoints" / "step-000000050"
    assert sorted(path.name for path in newest.glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]
    assert json.loads((folder / "two" / "run.json").read_text(encoding="utf-8"))["processes"] == 2


def test_bfloat16_in_two_processes(folder: Path) -> None:
    for row, expected in zip(rows(folder / "two-half"), rows(folder / "one-half"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.02)
        assert row["loss"] != expected["loss"]
    assert all(value.dtype == torch.float32 for value in weights(folder / "two-half").values())


def test_a_generator_of_two_processes_equals_that_of_one(folder: Path) -> None:
    one, two = (folder / f"generator-{name}" for name in ("one", "two"))
    for row, expected in zip(rows(two), rows(one), strict=True):
        assert row.keys() == expected.keys()
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for key in (
            "main_image",
            "main_text",
            "retrieved",
            "grad_norm",
            "output_rms",
        ):  # Muon rounds to 16 bits
            assert row[key] == pytest.approx(expected[key], rel=1e-3), key
    opened = load_file(two / "model.safetensors")
    for key, value in load_file(one / "model.safetensors").items():
        assert torch.allclose(opened[key], value, atol=1e-3), key
    assert (two / "racm3.json").exists()


def test_one_process_makes_no_group() -> None:
    processes = connect()
    assert (processes.rank, processes.size, processes.main) == (0, 1, True)
    assert not dist.is_initialized()
    assert processes.total([1.5, 2]) == [1.5, 2]
    assert processes.gathered(["a"]) == ["a"]
    model: nn.Module = Toy()
    assert whole(model, Toy) is model
