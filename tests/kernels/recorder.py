"""What a kernel allocates, seen from below torch."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """While active: each operator's outputs as (operator name, dtype, elements of storage)."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[str, torch.dtype, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.outputs.append((func.overloadpacket.__name__, tensor.dtype, elements))
        return out

    def largest(self, dtype: torch.dtype) -> int:
        return max(size for _, kind, size in self.outputs if kind == dtype)

    def total(self, operator: str) -> int:
        return sum(size for name, _, size in self.outputs if name == operator)
