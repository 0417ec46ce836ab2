"""Where documents come from, and what is said when they do not."""

import os
import socket
import sys
import sysconfig
import types
from pathlib import Path

import pytest

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tasks.sources import documents, stdlib_documents


def refuse(source, **changes):
    """The one line that a source is refused with."""
    with pytest.raises(InputError) as error:
        list(documents(source, **changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_standard_library_without_its_tests_and_what_is_installed():
    root = Path(sysconfig.get_path("stdlib"))
    found = list(stdlib_documents())
    assert (root / "textwrap.py").read_bytes() in found
    assert (root / "json" / "decoder.py").read_bytes() in found
    tests = root / "test"
    if (tests / "test_textwrap.py").exists():  # some installations leave it away
        assert (tests / "test_textwrap.py").read_bytes() not in found
    assert not any(b"build_time_vars = {" in text for text in found)
    assert found == list(stdlib_documents())


def test_a_python_without_sources_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert "give --data PATH instead of 'stdlib'" in refuse("stdlib")


def test_a_folder_gives_its_text_files_in_order(tmp_path):
    wanted = {"a.txt": b"first", "b/z.py": "zweite Ä".encode(), "b/deep/c.md": b"third"}
    others = {
        "b/picture.png": b"\x89PNG\r\n\x1a\n\0\0\0",
        "b/control.bin": bytes(range(1, 32)) * 9,
        ".git/config": b"hidden",
        "b/.hidden": b"hidden",
    }
    for name, content in (wanted | others).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "broken-link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "b" / "pipe")
    assert list(documents(str(tmp_path))) == list(wanted.values())


def test_what_cannot_be_read_in_a_folder_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("yes")
    (tmp_path / "b").write_text("no")
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert list(documents(str(tmp_path))) == [b"yes"]


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("text")

    def no_open(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", no_open)
    assert refuse(str(path)) == f"cannot read {path}: Permission denied"


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("text")
    assert list(documents("~/x.txt")) == [b"text"]


@pytest.mark.parametrize("source", ["nope", "/nope/x.txt", "./a/b", "a/b/c", "data/x.txt", ""])
def test_an_unknown_source_lists_the_known_kinds(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if source:
        assert f"no corpus {source!r}: it is no file or folder here" in refuse(source)
        assert "'stdlib', 'minipile' or 'hub:OWNER/NAME'" in refuse(source)
    else:
        assert list(documents(source)) == []  # the working folder, empty here


@pytest.fixture
def online(monkeypatch):
    """A machine with a network, as far as the first look goes."""
    for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    connection = types.SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: connection)


@pytest.fixture
def hub(online, monkeypatch):
    """A stand-in for the package `datasets`: what it was asked for, and what it shall give."""
    asked, rows = [], []

    def load_dataset(path, name, *, split, streaming):
        asked.append((path, name, split, streaming))
        for row in rows:
            if isinstance(row, Exception):
                raise row
            yield row

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked, rows


@pytest.mark.parametrize(
    ("source", "asked_for"),
    [
        ("minipile", ("JeanKaddour/minipile", None)),
        ("hub:Salesforce/wikitext:wikitext-2-raw-v1", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("hub:imdb", ("imdb", None)),
        ("roneneldan/TinyStories", ("roneneldan/TinyStories", None)),
    ],
)
def test_hub_names(hub, source, asked_for):
    asked, rows = hub
    rows += [{"text": "one"}, {"text": "zwei ä"}]
    assert list(documents(source)) == [b"one", "zwei ä".encode()]
    assert asked == [(*asked_for, "train", True)]


def test_the_column_of_text_is_found(hub):
    _, rows = hub
    rows += [{"id": "7", "content": "a"}, {"n": 3, "story": "b"}, {"id": "7", "text": "c"}]
    assert list(documents("minipile")) == [b"a", b"b", b"c"]
    rows[:] = [{"n": 3, "label": 0}]
    assert "has no column of text; it has n, label" in refuse("minipile")


def test_only_as_much_is_read_as_asked_for(hub):
    _, rows = hub
    rows += [{"text": "x" * 100}] * 3 + [RuntimeError("was read on")]
    assert len(list(documents("minipile", 250))) == 3


def test_what_the_package_raises_is_one_line(hub):
    _, rows = hub
    rows += [ConnectionError("Couldn't reach the Hub\nmany\nlines")]
    assert refuse("minipile") == (
        "cannot read the data set JeanKaddour/minipile: Couldn't reach the Hub; "
        "--data PATH takes any file or folder, and --data stdlib needs no network"
    )
    rows[:] = [KeyError()]
    assert "minipile: KeyError; --data PATH" in refuse("minipile")


def test_without_the_package_its_extra_is_named(online, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refuse("minipile") == (
        "the data set JeanKaddour/minipile needs the package 'datasets': "
        f"{pip_install('data')}; without it, --data PATH takes any file or folder, "
        "and --data stdlib needs no network"
    )


def test_without_a_network_it_is_said_at_once(hub, monkeypatch):
    def unreachable(*_, timeout):
        assert timeout <= 10
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    line = refuse("minipile")
    assert "huggingface.co, which cannot be reached from here" in line
    assert "--data PATH takes any file or folder, and --data stdlib needs no network" in line


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE"])
def test_a_proxy_a_mirror_or_a_cache_is_left_to_the_package(hub, monkeypatch, name):
    def unreachable(*_, **__):
        raise OSError

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setitem(os.environ, name, "1")
    hub[1].append({"text": "cached"})
    assert list(documents("minipile")) == [b"cached"]
