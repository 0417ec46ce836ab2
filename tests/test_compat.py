"""What touches JAX internals does what it says on this version of JAX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from springroll import compat

X = jnp.ones((2, 3))


def equation(fn, name, *args):
    (found,) = [e for e in jax.make_jaxpr(fn)(*args).eqns if e.primitive.name == name]
    return found


@pytest.mark.parametrize(("n_consts", "n_carry"), [(0, 1), (2, 1), (1, 3)])
def test_scan_groups(n_consts, n_carry):
    consts = [X * i for i in range(n_consts)]

    def fn(consts, carry, xs):
        return lax.scan(
            lambda c, x: ([v + sum(k.sum() for k in consts) + x for v in c], x), carry, xs
        )

    carry = [jnp.float32(i) for i in range(n_carry)]
    eqn = equation(fn, "scan", consts, carry, jnp.ones(5))
    found = compat.scan_groups(eqn)
    assert found[1] == n_carry and found[0] == len(eqn.invars) - n_carry - 1


def test_inner_jaxprs_are_found_and_opened():
    for fn, name in [
        (lambda x: jax.jit(jnp.sin)(x), "jit"),
        (lambda x: jax.nn.relu(x), "custom_jvp_call"),
        (lambda x: jax.checkpoint(jnp.sin)(x), "remat2"),
    ]:
        closed = jax.make_jaxpr(fn)(X)
        eqns = [e for e in closed.eqns if e.primitive.name in (name, "jit")]
        opened, consts = compat.open_jaxpr(compat.inner_jaxpr(eqns[0]))
        assert len(opened.invars) == 1 and list(consts) == []
    assert compat.inner_jaxpr(equation(jnp.sin, "sin", X)) is None


def test_bind_changes_a_parameter():
    eqn = equation(lambda x: x @ x.T, "dot_general", X)
    (out,) = compat.bind(eqn, X.astype(jnp.bfloat16), X.T.astype(jnp.bfloat16))
    assert out.dtype == jnp.float32
    (out,) = compat.bind(eqn, X, X.T, preferred_element_type=jnp.dtype(jnp.float32))
    assert out.shape == (2, 2)


def test_prune_and_used_inputs():
    def fn(a, b, c):
        jnp.sin(b)
        return a + 1, lax.cond(True, lambda: c, lambda: c)

    closed = jax.make_jaxpr(fn)(X, X, X)
    assert compat.used_inputs(closed) == [True, False, True]
    pruned = compat.prune(closed)
    assert "sin" not in str(pruned) and len(pruned.jaxpr.invars) == 3


def test_source_names_this_file():
    assert "test_compat.py:" in compat.source_of(equation(lambda x: jnp.sin(x), "sin", X))
    assert compat.source_of(equation(jnp.sin, "sin", X)) == "an unknown line"


def test_an_edge_jit_runs_alone_and_under_another_trace():
    twice = compat.edge_jit(lambda x: lax.optimization_barrier(x * 2))
    assert twice(X).sum() == 12 and jax.jit(twice)(X).sum() == 12
    assert "main" in twice.lower(X).as_text()


def test_nothing_varies_outside_shard_map():
    assert compat.varying(X) == frozenset()
    assert compat.vary(X, ()) is X
    assert compat.size(X) == 6


def test_what_varies_inside_shard_map():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def inside(rows, whole):
        assert compat.varying(rows) == {"d"} and compat.varying(whole) == frozenset()
        assert compat.varying(compat.vary(whole, ["d"])) == {"d"}
        return rows

    share = jax.shard_map(inside, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P("d"))
    assert jax.eval_shape(share, X, X).shape == X.shape


def test_importing_the_room_starts_no_backend():
    code = (
        "import springroll.thin.discovery, springroll.thin.report;"
        "from jax._src import xla_bridge; assert not xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_frugal_jit_is_a_jit():
    twice = compat.frugal_jit(lambda x: x * 2)
    assert float(twice(jnp.float32(3))) == float(jax.jit(lambda x: twice(x))(3.0)) == 6
    assert twice.lower(jnp.float32(3)).compile() is not None
