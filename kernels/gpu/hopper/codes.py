"""Rows of numbers on their way to float8 codes that count a power of two of the row's own, as
`kernels.fp8_reference.in_codes` has them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def bits_of(x):
    """float32 as the integers that its bits are."""
    return x.to(gl.int32, bitcast=True)


@gluon.jit
def number_of(bits):
    """The inverse of `bits_of`."""
    return bits.to(gl.float32, bitcast=True)


@gluon.jit
def counted(x):
    """Rows [rows, columns] as multiples of what is to be 1 in codes, the largest 2**7 or more and less than 2**8; and
    what that is for each row, [rows]: infinite for what is infinite.
    """
    least: gl.constexpr = 8 << 23  # the exponent of float32's least normal number, and 7 more
    largest = gl.max(number_of(bits_of(x) & 0x7FFFFFFF), 1)
    exponent = gl.maximum(bits_of(largest) & 0x7F800000, least)
    inverse = number_of(0x7E800000 - (exponent - least))
    return x * inverse[:, None], number_of(exponent) * 0.0078125
