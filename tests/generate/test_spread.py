"""Rows over several devices: which device writes what, and that it writes what one device would."""

import threading
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.generate.queue import ANY
from springroll.generate.spread import devices_of, parts_of, side_by_side
from tests.generate.writing import MEMBERS, PROMPTS, at_once, generator, same, tiny


def mesh_of(devices, axis="population"):
    return jax.make_mesh((devices,), (axis,), devices=jax.devices()[:devices])


def population(pop_size) -> Any:
    """All that is asked of members before they are cut."""
    signs = SimpleNamespace(signs=(1, -1))
    return SimpleNamespace(pairs=np.zeros(pop_size // 2), perturbation=signs)


@pytest.mark.parametrize(
    "members, prompts, others, devices",
    [(16, 3, 0, 2), (6, 4, 2, 4), (2, 1, 0, 4), (2, 1, 5, 3), (0, 7, 2, 3), (10, 5, 3, 1)],
)
def test_every_row_is_of_one_part_and_parts_are_as_large(members, prompts, others, devices):
    asked = population(members) if members else None
    parts = parts_of(asked, prompts, others, [None] * devices)
    rows = [
        row
        for part in parts
        for row in zip(part.jobs.member.tolist(), part.jobs.prompt.tolist(), strict=True)
    ]
    assert sorted(rows) == [(m, p) for m in range(members + others) for p in range(prompts)]
    sizes = [part.jobs.member.size for part in parts]
    assert max(sizes) - (min(sizes) if len(sizes) == devices else 0) <= 2
    for part in parts:
        pair, member = part.jobs.pair, part.jobs.member
        np.testing.assert_array_equal(pair == ANY, member >= members)
        of_pairs = pair != ANY
        np.testing.assert_array_equal(part.first + pair[of_pairs], member[of_pairs] // 2)
        assert set(pair[of_pairs]) == set(range(part.pairs)) and part.members == members + others
    if members and (members // 2) % devices == 0:
        assert [part.pairs for part in parts] == [members // 2 // devices] * devices


def test_two_devices_write_what_one_writes():
    _, params, members = tiny()
    got = generator(segment=4, mesh=mesh_of(2)).run(params, members, PROMPTS)
    same(at_once(), got)
    assert got.row_steps == at_once().row_steps


@pytest.mark.slow
@pytest.mark.parametrize("devices, rows", [(3, None), (3, 2), (2, 4)])
def test_devices_draw_what_one_draws(devices, rows):
    """Three devices cut both pairs, and one of the pairs is on two."""
    _, params, members = tiny()
    drawn = {"temperature": 1.0, "log_probabilities": True, "segment": 4}
    asked = {"seed": 3, "unperturbed": 2}
    one = generator(**drawn).run(params, members, PROMPTS, **asked)
    mesh = mesh_of(devices)
    got = generator(**drawn, mesh=mesh, rows=rows).run(params, members, PROMPTS, **asked)
    same(one, got)
    assert one.log_probabilities is not None and got.log_probabilities is not None
    np.testing.assert_allclose(one.log_probabilities, got.log_probabilities, atol=1e-4)
    assert got.row_steps == one.row_steps


@pytest.mark.slow
def test_rows_are_spread_over_the_mesh_of_the_strategy():
    _, params, _ = tiny()
    ask = lambda mesh: (es := sr.eggroll(pop_size=MEMBERS, sigma=0.05, mesh=mesh)).ask(
        es.init(jax.random.key(1), params)
    )
    members = ask(mesh_of(2))
    assert len(devices_of(None, members, params)) == 2
    same(generator().run(params, ask(None), PROMPTS), generator().run(params, members, PROMPTS))


def test_a_mesh_without_a_population_is_one_line():
    _, params, members = tiny()
    with pytest.raises(InputError, match=r"mesh has axes \['x'\]; expected one named 'population'"):
        generator(mesh=mesh_of(2, "x")).run(params, members, PROMPTS)


def test_where_one_part_fails_the_others_halt():
    parts = parts_of(population(8), 2, 0, [None] * 3)
    begun = threading.Barrier(3)

    def write(part):
        begun.wait(10)
        if part is parts[1]:
            raise ZeroDivisionError
        assert part.halted.wait(10)

    with pytest.raises(ZeroDivisionError):
        side_by_side(write, parts)
