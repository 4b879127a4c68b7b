from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from racm3.retriever.encoder import Encoder
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.training.image_losses import Critic, PerceptualLoss, adversarial_losses

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    TextTokenizer.train(["a fox"], 256).save(tmp_path / "tokenizer.json")
    torch.manual_seed(0)
    return Encoder.new(
        Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
        dimension=8,
        text={**TOWER, "max_position_embeddings": 8},
        vision={**TOWER, "image_size": 16, "patch_size": 8},
    )


def test_equal_pictures_look_equal_and_the_difference_reaches_the_output_alone(encoder: Encoder) -> None:
    loss = PerceptualLoss(encoder)
    target = torch.rand(2, 3, 32, 32)
    assert loss(target, target).item() == pytest.approx(0, abs=1e-6)
    output = torch.rand(2, 3, 32, 32, requires_grad=True)
    seen = loss(output, target)
    seen.backward()
    assert seen > 0.01
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in encoder.model.vision_model.parameters())


def test_the_tower_follows_the_pictures_to_their_device(encoder: Encoder) -> None:
    target = torch.rand(2, 3, 32, 32, device="meta")  # a device that every machine has
    assert PerceptualLoss(encoder)(target, target).device == target.device


def test_one_backward_pass_trains_both_as_two_would() -> None:
    torch.manual_seed(0)
    critic, target = Critic(width=8).double(), torch.rand(2, 3, 16, 16).double()
    output = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    sum(adversarial_losses(critic, output, target)).backward()  # type: ignore[union-attr]
    together = [output.grad.clone(), *(weight.grad.clone() for weight in critic.parameters())]  # type: ignore[union-attr]

    (to_output,) = torch.autograd.grad(-critic(output).mean(), output)
    hinge = F.relu(1 - critic(target)).mean() + F.relu(1 + critic(output.detach())).mean()
    apart = [to_output, *torch.autograd.grad(hinge, list(critic.parameters()))]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)
