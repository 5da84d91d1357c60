"""The shortcuts of Triton's interpreter: types stay apart, and an overflow is an error."""

from __future__ import annotations

import pytest
import torch

from tests.support.triton_scans import in_interpreter

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = in_interpreter


@triton.jit
def square(to, number):
    tl.store(to, number * number)


def test_types_of_blocks_are_told_apart():
    pointers = tl.pointer_type(tl.float32), tl.pointer_type(tl.float32, const=True)
    made = [
        (element, shape, tl.block_type(element, shape))
        for element in (tl.float32, tl.int32, *pointers)
        for shape in ([4], [4, 1], [tl.constexpr(1), 4])
    ]
    for element, shape, found in made:
        assert found.element_ty == element and found.element_ty.is_const() == element.is_const()
        assert list(found.shape) == [getattr(size, "value", size) for size in shape]
        assert sum(found == other for _, _, other in made) == 1
    with pytest.raises(ValueError, match="must be a power of 2"):
        tl.block_type(tl.int32, [3])


@pytest.mark.parametrize(("number", "overflows"), [(46_340, False), (46_341, True)])
def test_an_overflow_is_found(number, overflows):
    to = torch.zeros(1, dtype=torch.int32)
    if overflows:
        with pytest.raises(Exception, match="int32 overflow detected for operation mul"):
            square[(1,)](to, number)
    else:
        square[(1,)](to, number)
        assert to.item() == number**2
