"""Products with frozen weights, in the layout that oneDNN multiplies fastest.

A weight read from memory in its plain layout costs a decode step of 16 sequences 1.6 times the computing, one of 64
sequences 1.2 to 1.5 times. On CPUs each weight is laid out once, when it is first multiplied by; the layout lives as
long as the weight. In bfloat16 the products are the plain ones to the bit; in float32 a row's product does not depend
on how many rows there are, which the plain one does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

EXPECTED_ROWS = 64
"""Rows that a layout is made for; it serves any number."""
SERVED = (torch.bfloat16, torch.float32)

_LAID_OUT: Any = WeakTensorKeyDictionary()
"""(version of the weight, its layout) by weight."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b for a weight that is never changed in place while a gradient is under way.

    Shapes: x (N, in), weight (out, in), bias (out,) -> (N, out). Gradient flows into x; into weight and bias too where
    they ask for one.
    """
    if not _serves(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Frozen.apply(x, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
    return _product(x, weight, bias)


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the product may go by a layout: on a CPU that has it, and nothing to learn in the weight."""
    if x.dtype not in SERVED or weight.dtype != x.dtype or weight.device.type != "cpu" or x.dim() != 2:
        return False
    learned = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    return not learned and x.shape[0] > 0 and available(x.dtype)


def available(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU has the layouts for `dtype`."""
    ops = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_linear_pointwise")
        and hasattr(ops, "_reorder_linear_weight")
        and (dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported()))
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, _layout(weight), bias, "none", [], "")
    return out


def _layout(weight: Tensor) -> Tensor:
    """The weight's layout, made anew when the weight has been changed in place since."""
    kept = _LAID_OUT.get(weight)
    version = 0 if weight.is_inference() else weight._version
    if kept is not None and kept[0] == version:
        return kept[1]  # type: ignore[no-any-return]
    with torch.inference_mode(False), torch.no_grad():
        layout: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), EXPECTED_ROWS)
    _LAID_OUT[weight] = (version, layout)
    return layout


class _Frozen(torch.autograd.Function):
    """The product by the layout, with its gradient for x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.mm(grads[0], ctx.weight), None, None
