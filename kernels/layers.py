# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Textures of a layered atlas: reading, writing and compositing them (StableVideo, section 3).

uv = (x, y): -1 and 1 are the outer edges of the texture and texel i of n lies at
``(i + 0.5) / n * 2 - 1``. Coordinates beyond the outer texel centres take the border texel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_texture(texture: Tensor, uv: Tensor, published_border: bool = False) -> Tensor:
    """Read a texture bilinearly at every pixel's uv; differentiable in both.

    Args:
        texture: [3, V, U], any number of channels.
        uv: [F, H, W, 2].
        published_border: parity with the published StableVideo code, for which a texture is
            surrounded by black texels; otherwise its border texels go on.

    Returns:
        [F, 3, H, W] in the dtype of texture, computed in float32.

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check(texture.ndim == 3, uv, "texture [3, V, U]", texture)
    # All frames as rows of one image, so that the texture is not repeated F times.
    grid = uv.float().flatten(0, 1)[None]
    padding = "zeros" if published_border else "border"
    pixels = F.grid_sample(
        texture.float()[None], grid, mode="bilinear", padding_mode=padding, align_corners=False
    )
    frames = pixels[0].unflatten(1, uv.shape[:2]).transpose(0, 1)
    return frames.to(texture.dtype)


def sample_texture_naive(texture: Tensor, uv: Tensor) -> Tensor:
    """The definition: the weighted sum of the four texels around each uv."""
    flat = texture.float().flatten(1)
    out = sum(flat[:, at] * share for at, share in _corners(uv, texture.shape[1:], 0.5))
    assert isinstance(out, Tensor)
    return out.transpose(0, 1).to(texture.dtype)


def splat_to_texture(
    frames: Tensor,
    uv: Tensor,
    size: tuple[int, int],
    weight: Tensor | None = None,
    published_shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """Write pixels into a texture: the weighted mean of all pixels that touch a texel.

    The adjoint of `sample_texture`: a pixel writes to the four texels that it would read, with the
    same bilinear shares. Differentiable in frames, weight and uv. On CUDA the order of the sums,
    and so the last bits, may vary between runs.

    Args:
        frames: [F, 3, H, W], any number of channels.
        uv: [F, H, W, 2].
        size: (V, U), rows and columns of the texture.
        weight: [F, 1, H, W] >= 0, the importance of each pixel; None: 1.
        published_shift: parity with the published StableVideo code, which writes texel i at
            ``i / n * 2 - 1``, half a texel beside where it reads.

    Returns:
        texture [3, V, U] in the dtype of frames, 0 where nothing was written; coverage [1, V, U]
        float32, the sum of weight x share that a texel received (>= 0, not limited to 1).

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check(frames.ndim == 4 and _pixels(frames) == uv.shape[:3], uv, "frames [F, 3, H, W]", frames)
    _check(
        weight is None or weight.shape == (len(frames), 1, *frames.shape[2:]),
        uv,
        "weight [F, 1, H, W]",
        weight,
    )
    colours = frames.float().transpose(0, 1).flatten(1)
    given = torch.ones_like(colours[0]) if weight is None else weight.float().flatten()
    total = colours.new_zeros(len(colours), size[0] * size[1])
    coverage = colours.new_zeros(size[0] * size[1])
    for at, share in _corners(uv, size, 0.0 if published_shift else 0.5):
        amount = given * share.flatten()
        total = total.index_add(1, at.flatten(), colours * amount)
        coverage = coverage.index_add(0, at.flatten(), amount)
    texture = total / torch.where(coverage > 0, coverage, 1.0)
    return texture.unflatten(1, size).to(frames.dtype), coverage.view(1, *size)


def splat_to_texture_naive(
    frames: Tensor, uv: Tensor, size: tuple[int, int], weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition: the matrix of bilinear shares of every pixel at every texel, [F*H*W, V*U]."""
    v, u = size
    x = ((uv[..., 0].float() + 1) * u / 2 - 0.5).clamp(0, u - 1).flatten()
    y = ((uv[..., 1].float() + 1) * v / 2 - 0.5).clamp(0, v - 1).flatten()
    across = (1 - (x[:, None] - torch.arange(u)).abs()).clamp_min(0)
    down = (1 - (y[:, None] - torch.arange(v)).abs()).clamp_min(0)
    shares = (down[:, :, None] * across[:, None, :]).flatten(1) * weight.float().flatten()[:, None]
    coverage = shares.sum(dim=0)
    total = frames.float().transpose(0, 1).flatten(1) @ shares
    texture = torch.where(coverage > 0, total / coverage, 0.0)
    return texture.unflatten(1, size).to(frames.dtype), coverage.view(1, *size)


def composite(foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
    """``alpha * foreground + (1 - alpha) * background``; exact at alpha 0 and 1.

    More layers: fold from back to front, each result is the next background.

    Args:
        foreground: [F, 3, H, W].
        background: [F, 3, H, W].
        alpha: [F, 1, H, W] in 0..1.

    Returns:
        [F, 3, H, W] in the dtype of foreground.
    """
    mixed = torch.lerp(background.float(), foreground.float(), alpha.float())
    return mixed.to(foreground.dtype)


def composite_naive(foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
    """The definition."""
    mixed = alpha.float() * foreground.float() + (1 - alpha.float()) * background.float()
    return mixed.to(foreground.dtype)


def _corners(
    uv: Tensor, size: tuple[int, int] | torch.Size, shift: float
) -> list[tuple[Tensor, Tensor]]:
    """The four texels around each uv: (index into V*U, bilinear share), both [F, H, W]."""
    rows, columns = size
    x = ((uv[..., 0].float() + 1) * columns / 2 - shift).clamp(0, columns - 1)
    y = ((uv[..., 1].float() + 1) * rows / 2 - shift).clamp(0, rows - 1)
    left, top = x.detach().long(), y.detach().long()
    right, bottom = (left + 1).clamp(max=columns - 1), (top + 1).clamp(max=rows - 1)
    to_right, to_bottom = x - left, y - top
    return [
        (top * columns + left, (1 - to_bottom) * (1 - to_right)),
        (top * columns + right, (1 - to_bottom) * to_right),
        (bottom * columns + left, to_bottom * (1 - to_right)),
        (bottom * columns + right, to_bottom * to_right),
    ]


def _pixels(frames: Tensor) -> tuple[int, ...]:
    return (len(frames), *frames.shape[2:])


def _check(fits: bool, uv: Tensor, expected: str, got: Tensor | None) -> None:
    if not fits or uv.ndim != 4 or uv.shape[3] != 2:
        came = None if got is None else tuple(got.shape)
        raise ValueError(
            f"expected {expected} and uv [F, H, W, 2] of the same frames and size, got {came} and "
            f"{tuple(uv.shape)}."
        )
