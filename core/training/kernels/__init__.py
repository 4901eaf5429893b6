"""What a GPU does faster than torch.compile makes it of the plain expression.

* attention   a window in the signature, by the fastest kernel that is installed
* mlp         squared ReLU within the matrix products around it
* gemm        the product behind it, in Triton

Each is a function of the plain expression's values and gradients, and is that expression
itself where the GPU lacks what the kernel needs.
"""

from core.training.kernels.attention import windowed_attention
from core.training.kernels.mlp import squared_relu_mlp

__all__ = ["squared_relu_mlp", "windowed_attention"]
