"""The mixtures among the small models: no router has a near tie where logits are compared.

A device with float16 activations would choose another expert there, which is no error, but moves a logit as far as one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.devices.open import open_device
from kernels.reference.matmul import Linear, linear
from kernels.reference.moe import Router
from kernels.reference.norm import normalise
from kernels.weights.parameters import Norm
from tests.models.files import SMALL
from tests.worker.model.families.test_conformance import prompts
from worker.commands.logits import compute_logits
from worker.model.gguf import open_gguf
from worker.model.registry import load_model

Float32 = NDArray[np.float32]

NEAR_TIE = 0.01  # float16 activations move a router's logits by 0.001 to 0.005
MIXTURES = [path for path in SMALL.values() if any("ffn_gate_inp." in name for name in open_gguf(path).tensors)]


def router_margins(path: Path, token_ids: list[int]) -> Float32:
    """By how much the last expert that is chosen leads the first that is not: [layers, len(token_ids)]."""
    device = open_device("cpu")
    run = device.ops.norm_moe_residual
    margins: list[Float32] = []

    def observed(x: Float32, norm: Norm[Float32], router: Router, *rest: Any, **named: Any) -> None:
        logits = np.empty((x.shape[0], router.weight.shape[0]), np.float32)
        linear(normalise(norm, x), (Linear(router.weight, router.bias),), out=logits)
        sorted_logits = -np.sort(-logits, axis=1)
        margins.append(sorted_logits[:, router.num_used - 1] - sorted_logits[:, router.num_used])
        run(x, norm, router, *rest, **named)

    device.ops.norm_moe_residual = observed  # type: ignore[method-assign]
    compute_logits(load_model(open_gguf(path), device, lambda _done, _total: None), token_ids)
    return np.stack(margins)


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_no_router_has_a_near_tie_where_logits_are_compared(path: Path) -> None:
    for number, reference in prompts(path):
        margins = router_margins(path, reference["ids"].tolist())[:, reference["positions"]]
        assert margins.min() > NEAR_TIE, f"prompt {number}"
