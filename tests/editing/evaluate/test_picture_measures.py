"""Background, CLIP, LPIPS and physical points, against independent computations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reweave.editing.evaluate import background, embeddings, perceptual, points
from reweave.editing.evaluate.types import Evidence
from reweave.tests.tolerances import assert_close
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

FRAMES, H, W = 3, 40, 52


def clip(seed: int) -> torch.Tensor:
    return torch.rand(FRAMES, H, W, 3, generator=torch.Generator().manual_seed(seed))


def boxed(frames: int = FRAMES) -> torch.Tensor:
    """A box that moves by two pixels a frame."""
    mask = torch.zeros(frames, H, W)
    for f in range(frames):
        mask[f, 10:25, 12 + 2 * f : 30 + 2 * f] = 1
    return mask


def measured(source: torch.Tensor, edited: torch.Tensor, mask: torch.Tensor | None) -> dict:
    found = background.background_metrics(Evidence(source, edited, mask=mask))
    return {metric.name: metric for metric in found}


def test_background_psnr_and_mse_are_those_of_its_pixels():
    source, edited, mask = clip(0), clip(1), boxed()
    found = measured(source, edited, mask)
    psnr, mse, published = [], [], []
    for a, b, inside in zip(source.numpy(), edited.numpy(), mask.numpy() > 0.5, strict=True):
        pixels = (a[~inside], b[~inside])
        psnr.append(peak_signal_noise_ratio(*pixels, data_range=1.0))
        mse.append(((pixels[0] - pixels[1]) ** 2).mean() * 1e4)
        a, b = a.copy(), b.copy()
        a[inside] = b[inside] = 0
        published.append(peak_signal_noise_ratio(a, b, data_range=1.0))
    assert_close(found["background PSNR"].series.float(), torch.tensor(psnr).float())
    assert_close(found["background MSE"].series.float(), torch.tensor(mse).float())
    assert f"FiVE's code: {sum(published) / FRAMES:.2f} dB" in found["background PSNR"].note


def test_background_ssim_is_scikit_images():
    source, edited, mask = clip(0), (clip(0) * 0.6 + clip(1) * 0.4), boxed()
    maps, inner = background.ssim_maps(source, edited), slice(5, -5)
    for a, b, ours in zip(source, edited, maps, strict=True):
        found: Any = structural_similarity(
            a.double().numpy(), b.double().numpy(), data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
        )  # fmt: skip
        # at the rim each extends the picture in its own way
        theirs = found[1]
        assert_close(ours[inner, inner], torch.from_numpy(theirs).mean(-1)[inner, inner])
    kept = mask < 0.5
    shown = background.ssim_maps(source * kept[..., None], edited * kept[..., None])
    metric = measured(source, edited, mask)["background SSIM"]
    wanted = torch.stack([row[where].mean() for row, where in zip(shown, kept, strict=True)])
    assert_close(metric.series, wanted)
    assert f"FiVE's code: {float(shown.mean()):.4f}" in metric.note
    assert metric.value < float(shown.mean()), "the blackened object counts as kept in FiVE's"


def test_a_change_inside_the_mask_does_not_count():
    source, mask = clip(0), boxed()
    edited = torch.where(mask[..., None] > 0.5, 1 - source, source)
    found = measured(source, edited, mask)
    assert found["background MSE"].value == 0
    assert found["background PSNR"].value == pytest.approx(99.0)
    assert found["background SSIM"].value == pytest.approx(1.0)
    moved = measured(source, edited, mask.roll(3, 2))
    assert moved["background PSNR"].value < 30


def test_a_known_change_of_the_background():
    source = torch.full((FRAMES, H, W, 3), 0.5)
    found = measured(source, source + 0.1, boxed()[:1])
    assert found["background PSNR"].value == pytest.approx(20.0, abs=1e-4)
    assert found["background MSE"].value == pytest.approx(100.0, rel=1e-4)
    black = measured(source, torch.zeros_like(source), boxed())
    assert black["background PSNR"].value == pytest.approx(-10 * math.log10(0.25), abs=1e-4)


def test_a_small_mask_is_scaled():
    mask = F.interpolate(boxed()[:, None], scale_factor=0.5, mode="nearest-exact")[:, 0]
    outside = background.background(Evidence(clip(0), clip(1), mask=mask))
    assert float((outside == (boxed() < 0.5)).double().mean()) > 0.97


def test_a_frame_that_the_object_fills_is_left_out():
    source, edited, mask = clip(0), clip(1), boxed()
    mask[1] = 1
    for name, metric in measured(source, edited, mask).items():
        assert metric.series.isnan().tolist() == [False, True, False], name
        others = measured(source[::2], edited[::2], mask[::2])[name]
        assert metric.value == pytest.approx(others.value)
        assert metric.note == others.note or "PSNR" not in name


@pytest.mark.parametrize(
    ("mask", "why"),
    [(None, "no mask"), (torch.ones(1, H, W), "the mask covers the whole picture")],
)
def test_without_a_background_its_measures_are_named(mask, why):
    for metric in measured(clip(0), clip(1), mask).values():
        assert metric.value is None and metric.missing == why


def test_ssim_of_a_tiny_clip_is_named():
    source = torch.rand(1, 12, 12, 3, generator=torch.Generator().manual_seed(0))
    found = measured(source, source, torch.zeros(1, 12, 12))
    assert found["background SSIM"].missing == "the frames are smaller than 16 pixels"
    assert found["background PSNR"].value is not None


def vectors(count: int = 4, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def test_clip_measures_are_means_of_cosines():
    edited, source, text = vectors(seed=0), vectors(seed=1), vectors(1, seed=2)[0]
    picture = torch.rand(4, H, W, 3, generator=torch.Generator().manual_seed(0))
    evidence = Evidence(picture, picture, source_embeddings=source, edited_embeddings=edited)
    found = {m.name: m for m in embeddings.embedding_metrics(evidence)}
    pairs = [cosine(edited[i], edited[j]) for i in range(4) for j in range(i)]
    assert found["frame consistency"].value == pytest.approx(sum(pairs) / 6)
    neighbours = [cosine(edited[i], edited[i + 1]) for i in range(3)]
    assert found["CLIP-Image"].value == pytest.approx(sum(neighbours) / 3)
    assert found["text alignment"].missing == "no CLIP or no prompt"
    evidence = Evidence(picture, picture, source_embeddings=source, edited_embeddings=edited,
                        text_embedding=text)  # fmt: skip
    metric = embeddings.embedding_metrics(evidence)[2]
    assert metric.value == pytest.approx(sum(cosine(e, text) for e in edited) / 4)
    assert metric.source_value == pytest.approx(sum(cosine(e, text) for e in source) / 4)


def test_equal_frames_are_fully_consistent():
    same = vectors(1).expand(5, -1)
    assert_close(embeddings.frame_consistency(same), torch.ones(5, dtype=torch.float64))
    assert_close(embeddings.neighbour_similarity(same), torch.ones(4, dtype=torch.float64))


def test_two_different_clips_are_told():
    picture = torch.zeros(4, H, W, 3)
    evidence = Evidence(
        picture, picture, source_embeddings=vectors(), edited_embeddings=vectors(),
        text_embedding=torch.ones(6),
    )  # fmt: skip
    assert embeddings.embedding_metrics(evidence)[2].missing == (
        "the text encoder gives 6 numbers, the picture encoder 8: they are not parts of the same "
        "CLIP"
    )
    across = torch.zeros(4, 8)
    across[:, 0] = 1
    evidence = Evidence(
        picture, picture, source_embeddings=across, edited_embeddings=across,
        text_embedding=torch.eye(8)[1],
    )  # fmt: skip
    assert "probably not parts of the same CLIP" in embeddings.embedding_metrics(evidence)[2].note


def test_one_frame_has_no_consistency_but_an_alignment():
    picture = torch.zeros(1, H, W, 3)
    evidence = Evidence(
        picture, picture, source_embeddings=vectors(1), edited_embeddings=vectors(1),
        text_embedding=vectors(1)[0],
    )  # fmt: skip
    found = embeddings.embedding_metrics(evidence)
    assert [m.missing for m in found] == ["the clip has one frame only"] * 2 + [""]
    assert found[2].value == pytest.approx(1.0)


def test_lpips_without_weights_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    picture = torch.zeros(2, 64, 64, 3)
    for metric in perceptual.lpips_metrics(Evidence(picture, picture)):
        assert metric.value is None
        assert metric.missing == (
            "the weights of AlexNet (alexnet-owt-7be5be79.pth) are not in torch's hub folder"
        )
    small = perceptual.lpips_metrics(Evidence(picture[:, :40], picture[:, :40]))
    assert small[0].missing == "the frames are smaller than 64 pixels"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torchvision's, about its own argument
def test_lpips_is_the_distance_of_normalised_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Zhang et al. 2018, equation 1, on a backbone of random weights."""
    import torchmetrics
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.alexnet().eval()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / perceptual.BACKBONE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 64, 64, 3, generator=generator) for _ in range(2))
    heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    weights = torch.load(heads, map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        x, y = (((p * 2 - 1 - shift) / scale).movedim(-1, 1) for p in (a, b))
        layer = 0
        for block in list(network.features)[:12]:
            x, y = block(x), block(y)
            if isinstance(block, torch.nn.ReLU):
                unit = [v / (v.square().sum(1, keepdim=True) + 1e-8).sqrt() for v in (x, y)]
                head = weights[f"lin{layer}.model.1.weight"]
                total += ((unit[0] - unit[1]).square() * head).sum(1).mean((1, 2)).double()
                layer += 1
    assert layer == 5
    looks: list[int] = []
    found = perceptual.lpips(a, b, lambda: looks.append(1))
    assert len(looks) == 2, "once per pair"
    assert_close(found.float(), total.float())
    metrics = perceptual.lpips_metrics(Evidence(a, a))
    assert metrics[0].value == 0 and metrics[1].value == pytest.approx(metrics[1].source_value)
    assert metrics[1].value > 0


def surface(frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """uv of a plane that moves by one pixel a frame, and where it is seen."""
    x = torch.arange(W).float() + 0.5
    y = torch.arange(H).float() + 0.5
    uv = torch.stack(
        [torch.stack(torch.meshgrid((x - f) / W * 2 - 1, y / H * 2 - 1, indexing="xy"), -1)
         for f in range(frames)]
    )  # fmt: skip
    seen = torch.zeros(frames, H, W)
    for f in range(frames):
        seen[f, 8:30, 10 + f : 40 + f] = 1
    return uv, seen


def painted(frames: int = 4, flicker: torch.Tensor | None = None) -> torch.Tensor:
    """A texture fixed to the plane, plus an offset per frame."""
    wide = torch.rand(H, W, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    clip_ = torch.stack([wide.roll(f, 1) for f in range(frames)])
    return clip_ if flicker is None else clip_ + flicker.view(-1, 1, 1, 1)


def test_a_texture_that_sticks_to_the_surface_does_not_vary():
    uv, seen = surface()
    metric = points.point_metric(Evidence(painted(), painted(), uv=uv, on_surface=seen))
    assert metric.value == pytest.approx(0, abs=1e-3)
    swimming = painted()[:1].expand(4, -1, -1, -1)
    moved = points.point_metric(Evidence(painted(), swimming, uv=uv, on_surface=seen))
    assert moved.value > 10 and moved.source_value == pytest.approx(0, abs=1e-3)


def test_a_frame_is_triangulated_once_for_source_and_edit(monkeypatch: pytest.MonkeyPatch):
    uv, seen = surface()
    frames: list[int] = []
    triangulated = points.LinearNDInterpolator

    def counted(*given: Any) -> Any:
        frames.append(1)
        return triangulated(*given)

    monkeypatch.setattr(points, "LinearNDInterpolator", counted)
    points.point_metric(Evidence(painted(), painted(), uv=uv, on_surface=seen))
    assert len(frames) == len(uv)


def test_a_known_flicker_is_its_standard_deviation():
    uv, seen = surface()
    flicker = torch.tensor([0.0, 0.1, 0.05, 0.2])
    edited = painted(flicker=flicker)
    metric = points.point_metric(Evidence(painted(), edited, uv=uv, on_surface=seen))
    assert metric.value == pytest.approx(float(flicker.std()) * 255, rel=1e-4)
    deviation = (flicker - flicker.mean()).abs() * 255
    assert_close(metric.series.float(), deviation)


def test_points_that_one_frame_hides_are_compared_over_the_others():
    colours = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(3, 5, dtype=torch.bool)
    seen[0, 1] = seen[0, 2] = seen[1, 2] = False
    found = points.colour_variation(colours, seen)
    assert found[0] == pytest.approx(float(colours[:, :, 0].double().std(0).mean()))
    assert found[1] == pytest.approx(float(colours[1:, :, 1].double().std(0).mean()))
    assert bool(found[2].isnan())
    assert_close(points.colour_variation(colours), colours.double().std(0).mean(0))


def test_what_stands_in_front_does_not_count():
    """An occluder's uv is not the surface's, even where the surface would be behind it."""
    uv, seen = surface()
    edited = painted()
    seen[1, 15:25, 20:30] = 0
    edited[1, 15:25, 20:30] = 1.0
    metric = points.point_metric(Evidence(painted(), edited, uv=uv, on_surface=seen))
    assert metric.value == pytest.approx(0, abs=1e-3)
    counted = points.point_metric(Evidence(painted(), edited, uv=uv, on_surface=surface()[1]))
    assert counted.value > 1


def test_a_surface_seen_once_or_a_line_is_named():
    uv, seen = surface()
    seen[1:] = 0
    metric = points.point_metric(Evidence(painted(), painted(), uv=uv, on_surface=seen))
    assert metric.missing == "no point of the surface is seen in two frames"
    seen[:] = 0
    seen[:, 10, 12:20] = 1
    metric = points.point_metric(Evidence(painted(), painted(), uv=uv, on_surface=seen))
    assert metric.missing == "no point of the surface is seen in two frames"
    assert points.point_metric(Evidence(painted(), painted())).missing == "no exact uv"
