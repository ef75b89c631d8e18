"""Encoders: what loads and what is refused, the three embeddings, and context managers that restore everything."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fare_hf.data.pixels import Normalization
from fare_hf.encoders import (
    embed,
    evaluating,
    freeze,
    freeze_unused,
    frozen,
    load_encoder,
    logit_scale_of,
    make_embed,
    matmul_patch_embedding,
    text_class_embeddings,
)
from fare_hf.encoders.embedding import JOINED
from fare_hf.encoders.reading import EncoderReading
from fare_hf.objectives import FareObjective

NORMALIZATION = Normalization([0.5] * 3, [0.5] * 3)


def test_an_encoder_without_a_projection_loads_pooled(flat_vision_folder: Path) -> None:
    assert isinstance(load_encoder(str(flat_vision_folder), "pooled"), CLIPVisionModel)


@pytest.mark.parametrize("source", ["clip_folder", "legacy_vision_folder"])
def test_projected_embedding_is_clips_image_feature(
    source: str, clip_folder: Path, pixels: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    encoder = load_encoder(str(request.getfixturevalue(source)))
    assert isinstance(encoder, CLIPVisionModelWithProjection)
    expected = CLIPModel.from_pretrained(clip_folder).get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(embed(encoder, pixels), expected, rtol=0, atol=1e-6)


def test_pooled_and_tokens_are_what_llava_and_clip_read(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = load_encoder(str(clip_folder), "tokens")
    assert type(encoder) is CLIPVisionModel
    output = encoder(pixel_values=pixels, output_hidden_states=True)
    torch.testing.assert_close(embed(encoder, pixels, "pooled"), output.pooler_output)
    tokens = embed(encoder, pixels, "tokens")
    assert tokens.shape == (4, 16, 32)
    torch.testing.assert_close(tokens, output.hidden_states[-2][:, 1:])


@pytest.mark.parametrize("embedding", JOINED)
def test_a_joined_embedding_has_the_distance_of_both_parts(
    embedding: str, clip_folder: Path, pixels: torch.Tensor
) -> None:
    first, fare = embedding.split("+")[0], FareObjective()
    encoder = load_encoder(str(clip_folder), embedding).double()
    assert type(encoder) is type(load_encoder(str(clip_folder), first))
    others = pixels.flip(0).double()

    def distance(name: str, **options: float) -> torch.Tensor:
        return fare(embed(encoder, pixels.double(), name, **options), embed(encoder, others, name, **options))

    assert embed(encoder, others, embedding).ndim == 2 and distance("tokens").min() > 0
    for weight in (1.0, 0.25):
        expected = distance(first) + weight * distance("tokens")
        torch.testing.assert_close(distance(embedding, patch_weight=weight), expected, rtol=1e-12, atol=0)
    leaf = pixels[:1].double().requires_grad_()
    (slope,) = torch.autograd.grad(embed(encoder, leaf, embedding)[0, -1], leaf)  # of one number of one token
    assert slope.abs().max() > 0


def test_half_precision_files_load_in_fp32(clip_folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip_folder, dtype=torch.float16).save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).dtype == torch.float32


def test_make_embed_normalises_inside(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = freeze(load_encoder(str(clip_folder)))
    function = make_embed(encoder, lambda x: (x - 0.5) / 0.25)
    torch.testing.assert_close(function(pixels), embed(encoder, (pixels - 0.5) / 0.25))


def test_siglip_and_dinov2_give_pooled_and_tokens(tmp_path: Path, pixels: torch.Tensor) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    SiglipVisionModel(SiglipVisionConfig(intermediate_size=64, **size)).save_pretrained(tmp_path / "siglip")
    Dinov2Model(Dinov2Config(mlp_ratio=2, **size)).save_pretrained(tmp_path / "dinov2")
    for name in ("siglip", "dinov2"):
        encoder = load_encoder(str(tmp_path / name), "tokens")
        assert embed(encoder, pixels, "tokens").shape == (4, 16, 32)
        assert embed(encoder, pixels, "pooled").shape == (4, 32)


def test_frozen_restores_modes_and_flags_after_an_error(clip_folder: Path) -> None:
    encoder = load_encoder(str(clip_folder)).train()
    encoder.vision_model.encoder.layers[1].eval()
    encoder.visual_projection.weight.requires_grad_(False)
    before = [(p.requires_grad, m.training) for m in encoder.modules() for p in [*m.parameters(), torch.zeros(())]]
    with pytest.raises(RuntimeError, match="inside"), frozen(encoder):
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        raise RuntimeError("inside")
    after = [(p.requires_grad, m.training) for m in encoder.modules() for p in [*m.parameters(), torch.zeros(())]]
    assert after == before
    with evaluating(encoder):
        assert encoder.vision_model.encoder.layers[0].mlp.fc1.weight.requires_grad


@pytest.mark.parametrize(
    ("embedding", "unused"),
    [("projected", set()), ("pooled", set()), ("tokens", {"post_layernorm", "encoder.layers.2"})]
    + [(joined, set()) for joined in JOINED],
)
def test_freeze_unused_freezes_exactly_what_gets_no_gradient(
    embedding: str, unused: set[str], clip_folder: Path, pixels: torch.Tensor
) -> None:
    encoder = load_encoder(str(clip_folder), embedding)
    names = freeze_unused(encoder, EncoderReading(embedding, NORMALIZATION))
    assert {name.rsplit(".", 2 if "post_layernorm" not in name else 1)[0][:16].rstrip(".") for name in names} == unused
    embed(encoder, pixels, embedding).square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in encoder.parameters())


def test_matmul_patch_embedding_is_the_convolution(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = load_encoder(str(clip_folder))
    weight = encoder.vision_model.embeddings.patch_embedding.weight
    results = []
    for context in (evaluating, matmul_patch_embedding):
        leaf = pixels.clone().requires_grad_(True)
        with context(encoder):
            embeddings = embed(encoder, leaf)
        results.append((embeddings, *torch.autograd.grad(embeddings.square().sum(), [leaf, weight])))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(encoder.vision_model.embeddings.patch_embedding)


def test_matmul_patch_embedding_keeps_a_patched_forward(clip_folder: Path, pixels: torch.Tensor) -> None:
    encoder = load_encoder(str(clip_folder))
    conv = encoder.vision_model.embeddings.patch_embedding
    patched = conv.forward = lambda x: F.conv2d(x, conv.weight, conv.bias, conv.stride)
    with matmul_patch_embedding(encoder):
        assert conv.forward is not patched
    assert conv.forward is patched


def test_text_class_embeddings_average_normalised_templates(clip_folder: Path) -> None:
    names, templates = ["cat", "red dog"], ["a photo of a {}.", "the {}"]
    ensemble = text_class_embeddings(str(clip_folder), names, templates)
    singles = [text_class_embeddings(str(clip_folder), names, [template]) for template in templates]
    torch.testing.assert_close(ensemble, F.normalize(torch.stack(singles).mean(0), dim=-1))
    torch.testing.assert_close(ensemble.norm(dim=-1), torch.ones(2))
    assert not torch.allclose(ensemble[0], ensemble[1])


def test_the_logit_scale_is_that_of_the_clip(clip_folder: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip_folder)
    for stored, scale in ((math.log(30.0), 30.0), (math.log(300.0), 100.0)):
        model.logit_scale.data.fill_(stored)
        model.save_pretrained(tmp_path)
        assert logit_scale_of(str(tmp_path)) == pytest.approx(scale, rel=1e-5)
