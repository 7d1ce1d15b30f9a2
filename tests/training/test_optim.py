"""Muon in float32: what the iteration does to singular values, and that torch's own comes back."""

import pytest
import torch
from torch.optim import _muon

from vtc.training import optim

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
def test_the_iteration_moves_singular_values_by_its_polynomial_and_turns_nothing(shape):
    grad = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(grad, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = sum(c * s ** (2 * n + 1) for n, c in enumerate(COEFFICIENTS))
    torch.testing.assert_close(optim.orthogonal(grad, COEFFICIENTS, 5, 1e-7), u @ torch.diag(s) @ v)


def test_a_slow_processor_takes_nearly_the_step_that_torch_takes(monkeypatch):
    def after_a_step(slow):
        monkeypatch.setattr(optim, "is_slow_in_bf16", lambda device: slow)
        weight = torch.nn.Parameter(torch.ones(16, 8))
        weight.grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
        optim.Muon([weight], lr=1.0, weight_decay=0.0).step()
        return weight.detach() - 1

    torchs = _muon._zeropower_via_newtonschulz
    ours, theirs = after_a_step(slow=True), after_a_step(slow=False)
    assert _muon._zeropower_via_newtonschulz is torchs
    assert 0 < (ours - theirs).norm() < 0.03 * theirs.norm()  # bfloat16 has three digits
