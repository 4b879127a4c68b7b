from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from racm3.util.weights_version import WeightsVersion


@pytest.fixture
def model() -> nn.Linear:
    return nn.Linear(3, 2)


def stamp(model: nn.Module) -> WeightsVersion:
    return WeightsVersion(model.parameters())


def test_weights_that_were_only_read_keep_their_stamp(model: nn.Linear) -> None:
    before = stamp(model)
    with torch.inference_mode():
        model(torch.ones(1, 3))
        assert stamp(model) == before
    assert stamp(model) == before


def written_to(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight[0, 0] += 1


def loaded(model: nn.Linear) -> None:
    model.load_state_dict(nn.Linear(3, 2).state_dict())


def replaced(model: nn.Linear) -> None:
    model.weight = nn.Parameter(model.weight.detach().clone())


def converted(model: nn.Linear) -> None:
    model.to(torch.float64)


@pytest.mark.parametrize("change", [written_to, loaded, replaced, converted])
def test_a_change_of_the_weights_changes_the_stamp(model: nn.Linear, change: Callable[[nn.Linear], None]) -> None:
    before = stamp(model)
    change(model)
    assert stamp(model) != before


def test_no_new_tensor_can_lie_where_a_stamped_one_lay() -> None:
    """Without the stamp the allocator would give the same address again, and both tensors have version 0."""

    def address_and_stamp() -> tuple[int, WeightsVersion]:
        tensor: Tensor = torch.zeros(1000)
        return tensor.data_ptr(), WeightsVersion([tensor])

    address, first = address_and_stamp()
    again, second = address_and_stamp()
    assert again != address
    assert first != second
