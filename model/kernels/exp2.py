"""Powers of two as the hardware has them."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp2(x):
    """2^x of float32, 0 below 2^-126: `tl.exp2` spends three more instructions on such numbers."""
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
