"""Write the small model files that tests run; README.md beside this file says what each one is.

    python -m tests.models.make_models [FOLDER]

Running it again gives the same bytes. After a change, make the references again too (`tests.models.make_references`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from kernels.weights.formats import FORMATS
from tests.bench.make_model import write_model
from tests.bench.model_specs import TensorSpec
from tests.bench.random_blocks import UNQUANTISABLE, random_blocks
from tests.models.specs import SPECS


def blocks(tensor: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    """Random contents of a tensor, quantised by the gguf library where it can."""
    if tensor.format in UNQUANTISABLE:
        return random_blocks(FORMATS[tensor.format], tensor.shape, tensor.deviation, rng)
    values = rng.normal(tensor.mean, tensor.deviation, tensor.shape).astype(np.float32)
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor.format])


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    for name, (seed, describe) in SPECS.items():
        path = folder / f"{name}.gguf"
        write_model(describe(), path, seed=seed, make_blocks=blocks)
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
