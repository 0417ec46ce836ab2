"""Slices of a stack share its memory, and nothing is lost when the stack is given away."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.generate.views import slices


def stack(dtype, shape=(3, 16, 64)):
    x = jnp.asarray(np.arange(np.prod(shape)).reshape(shape) % 100, dtype)
    return jax.block_until_ready(x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_a_slice_is_there_once(dtype):
    whole = stack(dtype)
    at = [part.unsafe_buffer_pointer() - whole.unsafe_buffer_pointer() for part in slices(whole)]
    assert at == [i * whole.nbytes // 3 for i in range(3)]
    for part, expected in zip(slices(whole), np.asarray(whole), strict=True):
        assert part.dtype == dtype
        np.testing.assert_array_equal(part, expected)


def test_what_cannot_be_shared_is_copied():
    odd = stack(jnp.float32, (3, 5, 7))  # 140 bytes a slice
    traced = jax.jit(slices)(stack(jnp.float32))
    host: Any = np.ones((2, 16, 64), np.float32)
    host = slices(host)
    assert [part.shape for part in host] == [(16, 64)] * 2
    for got, whole in ((slices(odd), odd), (traced, stack(jnp.float32))):
        np.testing.assert_array_equal(np.stack(got), whole)


def test_a_stack_with_slices_is_not_written_over_and_one_without_is():
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    whole = stack(jnp.float32)
    parts, before = slices(whole), np.array(whole)
    after = add(whole)
    np.testing.assert_array_equal(np.stack(parts), before)
    del parts
    place = after.unsafe_buffer_pointer()
    parts = slices(after)
    del parts
    assert add(after).unsafe_buffer_pointer() == place
