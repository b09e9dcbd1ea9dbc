"""Networks and losses of Neural Layered Atlases against recordings (tests/goldens/README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reweave.editing.atlas import losses
from reweave.editing.atlas.networks import CoordinateNet, encoded
from safetensors.torch import load_file
from torch import Tensor

Golden = dict[str, Tensor]
DIMENSIONS = {"map_fg": 3, "map_bg": 3, "alpha": 3, "atlas": 2, "map_fg_pe4": 3}
WEIGHTS = {
    "rigid1": 1, "rigid2": 1, "grigid1": 5, "grigid2": 50, "rgb": 5000, "flow1": 5, "flow2": 5,
    "bce": 2000, "flow_alpha": 49, "sparsity": 1000, "gradient": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(root: Path) -> Golden:
    return load_file(root / "tests" / "goldens" / "nla_mlp.safetensors")


@pytest.fixture(scope="module")
def training(root: Path) -> Golden:
    return load_file(root / "tests" / "goldens" / "nla_losses.safetensors")


def weights_of(golden: Golden, prefix: str) -> Golden:
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_networks_and_their_gradients(networks: Golden, name: str) -> None:
    weights = weights_of(networks, f"{name}.w.")
    weights["hidden.0.weight"].requires_grad_()
    points = networks[f"in.x{DIMENSIONS[name]}"].clone().requires_grad_()
    out = CoordinateNet(weights, DIMENSIONS[name])(points)
    torch.testing.assert_close(out, networks[f"{name}.out"], rtol=0, atol=1e-5)
    if f"{name}.dsum_dx" in networks:
        by_point, by_weight = torch.autograd.grad(out.sum(), [points, weights["hidden.0.weight"]])
        for ours, theirs in ((by_point, "dsum_dx"), (by_weight, "dsum_dw0")):
            truth = networks[f"{name}.{theirs}"]
            torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))
    assert (out - networks[f"{name}.out"].roll(1, 0)).abs().max() > 1e-3


def test_the_encoding(networks: Golden) -> None:
    points = networks["in.x3"][:5]
    torch.testing.assert_close(encoded(points, 5), networks["pe.xyz5"], rtol=0, atol=1e-5)
    sorted_by_function = torch.cat([encoded(points, 5)[:, k::2] for k in (0, 1)], 1)
    assert (sorted_by_function - networks["pe.xyz5"]).abs().max() > 0.1


def test_a_skip_gives_no_gradient(networks: Golden) -> None:
    """The recorded gradient is that of the first layer alone."""
    net = CoordinateNet(weights_of(networks, "atlas.w."), 2)
    points = networks["in.x2"].clone().requires_grad_()
    (ours,) = torch.autograd.grad(net(points).sum(), points)
    truth = networks["atlas.dsum_dx"]
    assert (ours - truth).abs().max() < 1e-3 * truth.abs().max()
    wrong = points.detach().clone().requires_grad_()
    first = encoded(wrong, net.frequencies)
    hidden = first
    for number, (weight, bias) in enumerate(net.layers):
        hidden = torch.cat([hidden, first], 1) if weight.shape[1] > hidden.shape[1] else hidden
        hidden = hidden @ weight.T + bias
        hidden = hidden.relu() if number + 1 < len(net.layers) else hidden
    (attached,) = torch.autograd.grad(hidden.tanh().sum(), wrong)
    assert (attached - truth).abs().max() > 1e-2 * truth.abs().max()


class Training:
    """The published loop, with the pack's networks and loss terms."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.height, self.width, _, self.frames = golden["video"].shape
        self.longest, self.scale, self.wide = max(self.height, self.width), 0.8, 4
        self.nets: dict[str, CoordinateNet] = {}
        self.weights: Golden = {}
        for name, dimensions in (("m1", 3), ("m2", 3), ("al", 3), ("at", 2)):
            own = {
                key: value.clone().requires_grad_()
                for key, value in weights_of(golden, f"w.{name}.").items()
            }
            self.nets[name] = CoordinateNet(own, dimensions)
            self.weights |= {f"{name}.{key}": value for key, value in own.items()}

    def uv(self, net: str, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        half = self.longest / 2
        points = torch.stack([x / half - 1, y / half - 1, t / (self.frames / 2) - 1], 1)
        return self.nets[net](points)

    def alpha(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return 0.99 * 0.5 * (self.uv("al", x, y, t)[:, 0] + 1) + 0.001

    def colours(self, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Composite and foreground [3,P]."""
        front = (self.nets["at"](self.uv("m1", x, y, t) * 0.5 + 0.5) + 1) / 2
        back = (self.nets["at"](self.uv("m2", x, y, t) * 0.5 - 0.5) + 1) / 2
        alpha = self.alpha(x, y, t)[:, None]
        return (alpha * front + (1 - alpha) * back).T, front.T

    def pixels(self, net: str, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """uv in pixels of the picture."""
        return self.uv(net, x, y, t) * self.longest / (2 * self.scale)

    def rigidity(self, net: str, x: Tensor, y: Tensor, t: Tensor, step: int) -> Tensor:
        here = self.pixels(net, x, y, t)
        across = (here - self.pixels(net, x - step, y, t)) / step
        down = (here - self.pixels(net, x, y - step, t)) / step
        return losses.rigidity(across, down)

    def flow_terms(self, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        totals = [torch.zeros(()) for _ in range(3)]
        g = self.golden
        for name, usable, ahead in (("flow", "flow_mask", 1), ("flow_rev", "flow_rev_mask", -1)):
            chosen = g[usable][y, x, t, 0] > 0
            px, py, pt = x[chosen], y[chosen], t[chosen]
            flow = g[name][py, px, :, pt, 0]
            there = (px + flow[:, 0], py + flow[:, 1], pt + ahead)
            alpha = self.alpha(px, py, pt)
            for number, (net, weight) in enumerate((("m1", alpha), ("m2", 1 - alpha))):
                now, then = self.pixels(net, px, py, pt), self.pixels(net, *there)
                lost = losses.carried(then, now, weight, len(px))
                totals[number] = totals[number] + 0.5 * lost
            totals[2] = totals[2] + 0.5 * (self.alpha(*there) - alpha).abs().mean()
        return totals[0], totals[1], totals[2]

    def terms(self, points: Tensor) -> Golden:
        x, y, t = points[:, :, 0]
        g = self.golden
        drawn, front = self.colours(x, y, t)
        found = {"rgb": losses.colour(drawn, g["video"][y, x, :, t].T)}
        steps = [self.colours(x + 1, y, t)[0] - drawn, self.colours(x, y + 1, t)[0] - drawn]
        found["gradient"] = losses.gradient(steps, [g[n][y, x, :, t].T for n in ("dx", "dy")])
        alpha = self.alpha(x, y, t)
        found["sparsity"] = losses.sparsity(front, alpha)
        found["bce"] = losses.cross_entropy(alpha, g["mask"][y, x, t])
        found["flow1"], found["flow2"], found["flow_alpha"] = self.flow_terms(x, y, t)
        for net, number in (("m1", "1"), ("m2", "2")):
            found[f"rigid{number}"] = self.rigidity(net, x, y, t, 1)
            found[f"grigid{number}"] = self.rigidity(net, x, y, t, self.wide)
        return found


def test_every_loss_term_and_three_steps_of_training(training: Golden) -> None:
    run = Training(training)
    optimizer = torch.optim.Adam(list(run.weights.values()), lr=1e-4)
    for number in range(3):
        found = run.terms(training[f"it{number}.jif"])
        for name, value in found.items():
            expected = float(training[f"it{number}.{name}"])
            assert value.item() == pytest.approx(expected, rel=1e-4), (number, name)
        total = torch.stack([WEIGHTS[name] * value for name, value in found.items()]).sum()
        assert total.item() == pytest.approx(float(training[f"it{number}.total"]), rel=1e-4)
        optimizer.zero_grad()
        total.backward()
        if number == 0:
            for name in ("m1", "at"):
                truth = training[f"it0.grad.{name}.0"]
                ours = run.weights[f"{name}.hidden.0.weight"].grad
                assert ours is not None
                torch.testing.assert_close(
                    ours, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max())
                )
        optimizer.step()
    for name in ("m1", "m2", "al", "at"):
        ours = run.weights[f"{name}.hidden.0.weight"].detach()
        torch.testing.assert_close(ours, training[f"after3.{name}.0"], rtol=1e-4, atol=1e-5)


def test_the_terms_are_not_those_of_other_points(training: Golden) -> None:
    found = Training(training).terms(training["it1.jif"])
    for name, value in found.items():
        assert value.item() != pytest.approx(float(training[f"it0.{name}"]), rel=1e-4), name


def test_a_rigid_motion_is_the_best_there_is() -> None:
    angle = torch.tensor(0.7)
    across = torch.stack([angle.cos(), angle.sin()])[None]
    down = torch.stack([-angle.sin(), angle.cos()])[None]
    best = float(losses.rigidity(across, down))
    assert best == pytest.approx(2 * 2**0.5, abs=2e-3)
    assert float(losses.rigidity(across * 1.2, down)) > best + 0.05
    assert float(losses.rigidity(across, across)) > 10
