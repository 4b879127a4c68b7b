"""The generator against transformers' Qwen3ForCausalLM, which is written by others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from racm3.errors import CheckpointError, ConfigError, PromptTooLongError
from racm3.generator.model import Generator, GeneratorConfig

CONFIG = GeneratorConfig(
    vocabulary_size=61, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=40, context_tokens=32
)
SHAPES = [
    CONFIG,
    replace(CONFIG, tie_embeddings=False, rope_theta=500.0),
    replace(CONFIG, kv_heads=4),
    replace(CONFIG, kv_heads=4, tie_embeddings=False, layers=3, norm_eps=1e-3),
]


def random_generator(config: GeneratorConfig, seed: int = 0) -> Generator:
    """Weights far from their start, norms included, so that a wrong factor anywhere shows."""
    torch.manual_seed(seed)
    generator = Generator(config)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return generator


@pytest.mark.parametrize("config", SHAPES)
def test_logits_equal_qwen3_with_the_same_weights(config: GeneratorConfig) -> None:
    generator = random_generator(config)
    reference = Qwen3ForCausalLM(Qwen3Config(**config.to_qwen3())).eval()
    assert set(reference.state_dict()) == set(generator.state_dict())
    reference.load_state_dict(generator.state_dict())
    ids = torch.randint(config.vocabulary_size, (3, 32))
    with torch.no_grad():
        ours, theirs = generator.logits(generator(ids)), reference(ids).logits
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("config", SHAPES)
def test_a_saved_folder_opens_in_transformers_and_back(config: GeneratorConfig, tmp_path: Path) -> None:
    generator = random_generator(config)
    generator.save_pretrained(tmp_path / "ours")
    reference = Qwen3ForCausalLM.from_pretrained(tmp_path / "ours").eval()
    reference.save_pretrained(tmp_path / "theirs")
    ids = torch.randint(config.vocabulary_size, (2, 20))
    with torch.no_grad():
        expected = generator.logits(generator(ids))
        assert (reference(ids).logits - expected).abs().max() <= 1e-4
    for folder in ("ours", "theirs"):
        again = Generator.from_pretrained(tmp_path / folder)
        assert again.config == config
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == config.tie_embeddings
        with torch.no_grad():
            assert torch.equal(again.logits(again(ids)), expected)


def test_weights_can_be_saved_in_fewer_bits(tmp_path: Path) -> None:
    generator = random_generator(CONFIG)
    generator.save_pretrained(tmp_path, dtype=torch.float16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * generator.parameter_count + 4000
    again = Generator.from_pretrained(tmp_path)
    assert again.lm_head.weight.dtype == torch.float32
    assert torch.allclose(again.lm_head.weight, generator.lm_head.weight, atol=1e-3)


def test_padding_on_the_right_changes_nothing() -> None:
    generator = random_generator(CONFIG)
    ids = torch.randint(61, (2, 12))
    with torch.no_grad():
        assert torch.allclose(generator(ids)[:, :7], generator(ids[:, :7]), atol=1e-5)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, width=128, heads=8, head_dim=16, mlp_width=256, layers=8)
    generator = Generator(config)
    layer = generator.model.layers[0]
    assert generator.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # 1 / sqrt(2 x 8 layers) = 1 / 4
    assert torch.equal(layer.input_layernorm.weight, torch.ones(128))


def test_counts() -> None:
    """By hand, for one layer of width 24 with 4 heads, 2 key/value heads of 8, and an MLP of 40."""
    config = replace(CONFIG, layers=1)
    attention, mlp, table = 24 * 32 + 2 * 24 * 16 + 32 * 24, 3 * 24 * 40, 61 * 24
    norms = 2 * 24 + 24 + 2 * 8
    assert Generator(config).parameter_count == attention + mlp + table + norms
    assert Generator(replace(config, tie_embeddings=False)).parameter_count == attention + mlp + 2 * table + norms
    expected = 6 * (attention + mlp + table) + 6 * 32 * 100  # 32: 4 heads of 8
    assert Generator(config).flops_per_token(100) == expected
    assert Generator(replace(config, tie_embeddings=False)).flops_per_token(100) == expected


def test_too_many_tokens() -> None:
    generator = random_generator(CONFIG)
    with pytest.raises(PromptTooLongError, match="33 tokens were given; the generator reads at most 32"):
        generator(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads is 3; it must be a multiple of kv_heads, 2"),
        ({"head_dim": 7}, "head_dim is 7; rotary positions need an even number"),
        ({"layers": 0}, "layers is 0; it must be above 0"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a generator"):
        Generator.from_pretrained(tmp_path / "missing")
    generator = random_generator(CONFIG)
    generator.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, fields = weights.read_bytes(), json.loads(config.read_text())

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        Generator.from_pretrained(tmp_path)
    weights.write_bytes(whole)

    for change, message in [
        ({"model_type": "llama"}, "model_type = 'llama'; the generator reads 'qwen3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
        ({"num_hidden_layers": 3}, "do not fit its config.json"),
    ]:
        config.write_text(json.dumps(fields | change))
        with pytest.raises(CheckpointError, match=message):
            Generator.from_pretrained(tmp_path)
    config.write_text(json.dumps({k: v for k, v in fields.items() if k != "head_dim"}))
    with pytest.raises(CheckpointError, match="has no 'head_dim'"):
        Generator.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        Generator.from_pretrained(tmp_path)
