"""`springroll bench`: the list, and what becomes of the lines a benchmark prints."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

import springroll.bench
from springroll.cli import bench
from springroll.cli.main import main

RESULT = {
    "name": "sums",
    "ours": 2.5,
    "ratio": 4,
    "machine": {"cores": 1, "jax": "9"},
    "commit": "x",
}


@pytest.fixture
def prints(monkeypatch):
    """Puts a program in the place of every benchmark."""

    def put(code):
        command = lambda name, given: [sys.executable, "-c", code, *given]
        monkeypatch.setattr(bench, "command", command)

    return put


def test_the_list(capsys):
    assert main(["bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.BENCHES)


def test_every_benchmark_is_listed():
    """A module that measures has a `main`."""
    there = set()
    for path in Path(springroll.bench.__file__).parent.glob("*.py"):
        body = ast.parse(path.read_text()).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body):
            there.add(path.stem)
    assert there == set(bench.BENCHES)


def test_every_benchmark_is_a_module_that_runs():
    for name in bench.BENCHES:
        assert bench.command(name)[1:] == ["-m", f"springroll.bench.{name}"]
        assert callable(importlib.import_module(f"springroll.bench.{name}").main)


def test_json_on_standard_output_a_table_beside_it(prints, capsys, tmp_path):
    prints(f"print('warming up'); print('''{json.dumps(RESULT)}'''); print(3)")
    out = tmp_path / "results.jsonl"
    assert main(["bench", "openes-ratio", "--out", str(out)]) == 0
    output = capsys.readouterr()
    assert output.out == f"warming up\n{json.dumps(RESULT)}\n3\n"
    for part in ("sums", "2.5", "ratio", "cores 1, jax 9"):
        assert part in output.err
    assert [json.loads(line) for line in out.read_text().splitlines()] == [RESULT]


def test_all_of_them(prints, capsys):
    prints(f"print('''{json.dumps(RESULT)}''')")
    assert main(["bench", "all"]) == 0
    assert capsys.readouterr().out.count("\n") == len(bench.BENCHES)


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "print('no result')"])
def test_a_benchmark_that_fails(prints, code):
    prints(code)
    assert main(["bench", "openes_ratio"]) == 1


def test_bad_input_of_a_benchmark_is_that_of_the_command(prints):
    prints("raise SystemExit(2)")
    assert main(["bench", "openes_ratio"]) == 2


def test_a_misspelt_name(capsys):
    assert main(["bench", "openes_rato"]) == 2
    assert "unknown benchmark 'openes_rato'; did you mean openes_ratio?" in capsys.readouterr().err
    assert main(["bench", "xyz"]) == 2
    assert "there are int8_throughput" in capsys.readouterr().err


def test_an_experiment_is_named_with_its_own_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "mlp_step.py").touch()
    assert main(["bench", "mlp-step"]) == 2
    assert "it is run by python -m bench.mlp_step" in capsys.readouterr().err


def test_what_follows_two_hyphens_goes_to_the_benchmark(prints, capsys):
    prints("import json, sys; print(json.dumps({'given': sys.argv[1:]}))")
    assert main(["bench", "openes_ratio", "--", "--seeds", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["given"] == ["--seeds", "3"]
    assert main(["bench", "all", "--", "--seeds", "3"]) == 2
    assert "of one benchmark" in capsys.readouterr().err


@pytest.mark.parametrize("name", bench.BENCHES)
def test_arguments_that_a_benchmark_does_not_know_are_one_line(monkeypatch, capsys, name):
    module = importlib.import_module(f"springroll.bench.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--absent", "nan"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    said = capsys.readouterr().err
    assert said.startswith("springroll: ") and said.count("\n") == 1
