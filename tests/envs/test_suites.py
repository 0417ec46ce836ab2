"""Environments are found by their ids, and what is asked for in vain is said in one line."""

import subprocess
import sys

import pytest

from springroll.envs import suites
from springroll.envs.suites import SUITES, environment, key, keys, known, listing, shown
from springroll.errors import InputError
from springroll.program import pip_install
from springroll.rl.recipes import SIXTEEN


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda suite: False)
    suites._built.cache_clear()


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "Grid-5x5"])
def test_built_in_ones_are_always_there(nothing_installed, id):
    env = environment(id)
    assert env.name == id and env is environment(id) is environment(id.lower())
    assert environment(id, max_steps=9).max_steps == 9
    assert environment(id, max_steps=9) is environment(id, max_steps=9) is not env


@pytest.mark.parametrize(
    "spelled, found",
    [
        ("navix-DoorKey-8x8", ("navix", "Navix-DoorKey-8x8-v0")),
        ("Navix-DoorKey-8x8-v0", ("navix", "Navix-DoorKey-8x8-v0")),
        ("navix::doorkey-8x8", ("navix", "Navix-DoorKey-8x8-v0")),
        ("Navix-Dynamic-Obstacles-6x6-Random", ("navix", "Navix-Dynamic-Obstacles-6x6-Random-v0")),
        ("brax/ant", ("brax", "ant")),
        ("brax inverted_double_pendulum", ("brax", "inverted_double_pendulum")),
        ("Craftax-Symbolic-v1", ("craftax", "Craftax-Symbolic-v1")),
        ("craftax-Craftax-Symbolic-v1", ("craftax", "Craftax-Symbolic-v1")),
        ("Craftax-Classic-Symbolic-v1", ("craftax", "Craftax-Classic-Symbolic-v1")),
        ("Snake-v1", ("jumanji", "Snake-v1")),
        ("jumanji-game2048", ("jumanji", "Game2048-v1")),
        ("kinetix/l/hard_pinball", ("kinetix", "l/hard_pinball")),
        ("m/h17_thrustcontrol_left", ("kinetix", "m/h17_thrustcontrol_left")),
        ("CartPole", ("springroll", "CartPole-v1")),
        ("gymnax-CartPole-v1", ("gymnax", "CartPole-v1")),
    ],
)
def test_spellings(nothing_installed, spelled, found):
    assert suites._find(spelled) == found


def test_every_listed_id_finds_its_own(nothing_installed):
    for task in known():
        assert suites._find(task.id) == (task.suite, task.name)


def test_a_name_that_two_suites_have_needs_its_suite(monkeypatch, nothing_installed):
    row = known()[0]
    tasks = [row._replace(suite=suite, name="Twin-v0") for suite in ("brax", "navix")]
    monkeypatch.setattr(suites, "known", lambda: tasks)
    suites._by_key.cache_clear()
    try:
        assert suites._find("navix-twin") == ("navix", "Twin-v0")
        with pytest.raises(InputError, match="nearest: brax-Twin, navix-Twin"):
            suites._find("twin")
    finally:
        suites._by_key.cache_clear()


def test_the_listing_has_the_papers_tasks(nothing_installed):
    lines = {line.id: line for line in listing()}
    assert set(SIXTEEN) <= set(lines) and len(SIXTEEN) == 16
    assert lines["navix-DoorKey-8x8"] == (
        "navix-DoorKey-8x8",
        "navix",
        192,
        "discrete 7",
        100,
        False,
    )
    assert [line.id for line in listing()][:3] == list(suites.BUILT_IN)
    assert {line.suite for line in listing()} == {"springroll", *SUITES}
    assert all(line.installed == (line.suite == "springroll") for line in listing())
    assert len(lines) == len(listing())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("CartPol-v1", "nearest: CartPole-v1"),
        ("2048", "nearest: jumanji-Game2048"),
        ("navix-DorKey-8x8", "nearest: navix-DoorKey-8x8"),
        ("Snake-v7", "nearest: jumanji-Snake"),
        ("qqq", "no environment 'qqq'; all of them: springroll rl --list"),
    ],
)
def test_unknown_ids(nothing_installed, wrong, message):
    with pytest.raises(InputError) as caught:
        environment(wrong)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("id", [id for id in SIXTEEN if "-" in id and "v1" not in id])
def test_a_missing_suite_is_named_with_what_installs_it(nothing_installed, id):
    with pytest.raises(InputError) as caught:
        environment(id)
    said = str(caught.value)
    assert id in said and pip_install("rl") in said and "\n" not in said
    assert ("--no-deps kinetix-env" in said) == id.startswith("kinetix")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "mjx"}, "CartPole-v1 has no option 'backend'; it takes max_steps"),
        ({"max_steps": 0}, "max_steps is 0; expected a whole number of 1 or more"),
        ({"max_steps": 2.5}, "max_steps is 2.5; expected"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        environment("CartPole-v1", **options)


class FakeSuite:
    """A suite whose installed version has other tasks than the table."""

    @staticmethod
    def names():
        return ["Navix-Brand-New-v0"]

    @staticmethod
    def build(name, max_steps=100):
        return name, max_steps


@pytest.fixture
def another_version(monkeypatch):
    monkeypatch.setattr(suites, "installed", lambda suite: suite == "navix")
    monkeypatch.setattr(suites, "_adapter", lambda suite: FakeSuite)
    suites._built.cache_clear()
    yield
    suites._built.cache_clear()


def test_a_task_of_another_version_is_found(another_version):
    assert environment("navix-Brand-New", max_steps=5) == ("Navix-Brand-New-v0", 5)


def test_a_task_that_another_version_lacks_is_said(another_version):
    with pytest.raises(InputError, match="the navix installed here has no 'Navix-DoorKey-8x8-v0'"):
        environment("navix-DoorKey-8x8")


def test_a_broken_suite_is_said(another_version, monkeypatch):
    def broken():
        raise ImportError("No module named 'six'")

    monkeypatch.setattr(FakeSuite, "names", broken)
    with pytest.raises(InputError, match="navix cannot be imported: No module named 'six'"):
        environment("navix-DoorKey-8x8")


def test_listing_imports_no_suite():
    code = (
        "import sys; from springroll.envs.suites import listing; listing(); "
        f"print([s for s in {[*SUITES, 'matplotlib', 'PIL']} if s in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_keys_ignore_case_and_punctuation():
    assert shown("gymnax", "MountainCar-v0") == "gymnax-MountainCar"
    assert keys("gymnax", "MountainCar-v0") == {
        "gymnax-mountaincar",
        "gymnax-mountaincar-v0",
        "mountaincar",
        "mountaincar-v0",
    }
    assert key("Kinetix::l/Hard_Pinball") == "kinetix-l-hard-pinball"
