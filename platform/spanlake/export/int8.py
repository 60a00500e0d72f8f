"""Stores the matrices of an ONNX graph as int8, where int8 holds them without loss.

The weights of an int8 package are whole multiples of one scale per output channel. A graph may hold such a matrix
transposed, so the channels lie along either axis. A matrix that fits neither axis stays float32.

Shapes: M, N rows and columns of a matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = 127
_SMALLEST = 1024  # numbers in a matrix; int8 saves nothing on fewer


def store_int8(model: Any) -> None:
    """Replaces the matrices of `model`, an `onnx_ir.Model`, by int8 values and float32 scales."""
    for name, value in list(model.graph.initializers.items()):
        matrix = value.const_value.numpy()
        found = narrowed(matrix) if matrix.ndim == 2 and matrix.size >= _SMALLEST else None
        if found is not None:
            _replace(model.graph, value, *found)
            del model.graph.initializers[name]


def _replace(graph: Any, value: Any, integers: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
    """Puts a cast and a product in place of a matrix.

    ONNX Runtime would compute the product of DequantizeLinear and other values in int8, which changes the scores.
    """
    import onnx_ir

    stored = []
    for part, array in (("int8", integers), ("scale", scales)):
        name = f"{value.name}_{part}"
        stored.append(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name)))
        graph.register_initializer(stored[-1])
    cast = onnx_ir.node("Cast", stored[:1], attributes={"to": onnx_ir.DataType.FLOAT.value})
    product = onnx_ir.node("Mul", [cast.outputs[0], stored[1]])
    graph.insert_before(graph[0], [cast, product])
    value.replace_all_uses_with(product.outputs[0])


def narrowed(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Returns int8 [M, N] and float32 scales, [M, 1] or [1, N]; None where int8 would change the matrix."""
    for axis in (0, 1):
        scales = np.maximum(np.abs(matrix).max(axis=1 - axis, keepdims=True), 1e-12) / np.float32(_LARGEST)
        integers = np.rint(matrix / scales)
        if np.allclose(integers * scales, matrix, rtol=1e-5, atol=0):
            return integers.astype(np.int8, order="C"), scales.astype(np.float32)
    return None
