"""Records from files of every kind, and files that hold something else."""

import gzip
import json
import re
import sys
import types
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from springroll import hub
from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tasks import tables
from springroll.tasks.data_set import read_data
from springroll.tasks.tables import read_table

RECORDS = [{"prompt": "1+1?", "answer": "2"}, {"prompt": 'say "a,\nb"', "answer": "ä"}]
LINES = "\n\n".join(json.dumps(each) for each in RECORDS)
COLUMNS = {name: [each[name] for each in RECORDS] for name in RECORDS[0]}
CSV = '{0}prompt{1}answer\r\n1+1?{1}2\r\n\r\n"say ""a,\nb"""{1}ä\r\n'
SAME = {  # files that hold these records
    "a.jsonl": LINES,
    "a.ndjson": LINES + "\n",
    "a.txt": LINES,
    "lines.json": LINES,
    "a.json": json.dumps(RECORDS, indent=1),
    "data.json": json.dumps({"version": 3, "data": RECORDS}),
    "rows.JSON": json.dumps({"rows": RECORDS}),
    "columns.json": json.dumps(COLUMNS),
    "bom.json": "\ufeff" + json.dumps(RECORDS),
    "a.csv": CSV.format("\ufeff", ","),
    "a.tsv": CSV.format("", "\t"),
}


@pytest.mark.parametrize("name", SAME)
def test_files_of_every_kind(tmp_path, name):
    path = tmp_path / name
    path.write_text(SAME[name], newline="")
    found = read_table(path)
    assert [row.record for row in found] == RECORDS
    numbers = ["line 1", "line 3"] if SAME[name].strip() == LINES else ["record 1", "record 2"]
    assert [row.where for row in found] == [f"{number} of {path}" for number in numbers]


def test_a_field_of_a_csv_file_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\n" + "x" * 300_000)
    assert len(read_table(tmp_path / "a.csv")[0].record["prompt"]) == 300_000


BAD = {
    ("a.json", "3"): "a.json holds 3; expected a list of objects, {.data.: ",
    ("b.json", '{"prompt": "a"}\n'): "holds an object of prompt; expected a list of objects",
    ("c.json", '{"a": [1], "b": [1, 2]}'): "holds an object of a, b; expected a list of objects",
    ("d.json", '["a"]'): "record 1 of .*d.json is 'a'; expected an object with named fields",
    ("e.json", "[]"): "e.json holds no records",
    ("f.json", "{}"): "expected a list of objects",
    ("g.json", '[{"a": 1},'): "g.json is not JSON",
    ("h.json", "[" * 100 + "]" * 100): "nested deeper than 64 levels",
    ("a.csv", ""): "a.csv holds no records",
    ("b.csv", "prompt,answer\n"): "b.csv holds no records",
    ("c.csv", "prompt,answer\na,b\nc\n"): "record 2 of .*c.csv has 1 fields; expected 2 as in line",
    ("d.csv", "a,b\n1,2,3\n"): "record 1 of .*d.csv has 3 fields; expected 2 as in line 1",
    ("e.csv", "a,a\n1,2\n"): "e.csv has two columns 'a'; expected distinct names in line 1",
    ("f.csv", b"\xff\xfe"): "line 1 of .*f.csv is no text in UTF-8",
    ("f.jsonl", b'{"a": 1}\n{"a": "\xff"}\n'): "line 2 of .*f.jsonl is no text in UTF-8",
    ("h.jsonl", gzip.compress(b'{"a": 1}', mtime=0)): "h.jsonl is packed by gzip; unpack it",
    ("g.csv", 'prompt\na\n"b\n'): "cannot read .*g.csv: unexpected end of data",
    ("a.jsonl", "\n \n"): "a.jsonl holds no records",
    (
        "a.txt",
        "What is 2+2?",
    ): "a.txt is not JSON: .*; a file is read as JSON lines unless its name",
    ("b.jsonl", "{}\n[1]"): "line 2 of .*b.jsonl is a list; expected an object with named fields",
}


@pytest.mark.parametrize(("name", "content"), BAD)
def test_what_holds_no_records_is_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=BAD[name, content]):
        read_table(path)


def test_memory_is_looked_at_before_a_file_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a\n" + "1\n" * 1000)
    monkeypatch.setattr("springroll.memory.host_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"the text of .*a.csv would take 3.91 KiB of memory"):
        read_table(tmp_path / "a.csv")


class ParquetFile:
    """Stands for that of pyarrow, which is an extra."""

    rows = 2500
    group_bytes = 100

    def __init__(self, file):
        if file.read(4) != b"PAR1":
            raise ValueError(
                "Parquet magic bytes not found in footer.\nEither the file is corrupted"
            )
        group = types.SimpleNamespace(total_byte_size=self.group_bytes)
        self.metadata = types.SimpleNamespace(
            num_rows=self.rows, num_row_groups=1, row_group=lambda i: group
        )

    def iter_batches(self, batch_size):
        for start in range(0, self.rows, batch_size):
            rows = [self.row(i) for i in range(start, min(start + batch_size, self.rows))]
            yield types.SimpleNamespace(to_pylist=lambda rows=rows: rows)

    def row(self, i):
        day, picture = date(2026, 11, 29), {"bytes": b"\x89PNG", "path": None}
        return {"prompt": f"{i}?", "n": i, "day": day, "price": Decimal("0.10"), "image": picture}


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    fake = types.SimpleNamespace(ParquetFile=ParquetFile)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=fake))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    return tmp_path / "a.parquet"


def test_rows_of_parquet_are_what_json_can_say(parquet):
    found = read_table(parquet)
    assert len(found) == 2500 and found[-1].where == f"row 2500 of {parquet}"
    picture = {"bytes": None, "path": None}
    more = {"day": "2026-11-29", "price": "0.10", "image": picture}
    assert found[7].record == {"prompt": "7?", "n": 7, **more}


def test_parquet_that_is_damaged_too_large_or_without_its_package(parquet, monkeypatch):
    monkeypatch.setattr(ParquetFile, "group_bytes", 1 << 60)
    with pytest.raises(InputError, match=r"the records of .*a.parquet would take 1 EiB"):
        read_table(parquet)
    parquet.write_bytes(b"PART")
    with pytest.raises(InputError, match=r"cannot read .*a.parquet: Parquet magic bytes not found"):
        read_table(parquet)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=re.escape(pip_install("data"))):
        read_table(parquet)


def test_rows_of_a_library_are_taken_while_memory_is_left(monkeypatch):
    arrays = {"a": np.arange(3), "b": np.float32(0.5), "c": np.array("x")}
    assert [row.record for row in tables.plain_rows([arrays], "x")] == [
        {"a": [0, 1, 2], "b": 0.5, "c": "x"}
    ]
    monkeypatch.setattr("springroll.memory.host_memory", lambda: 1 << 20)
    with pytest.raises(InputError, match="what follows row 8 of x would take 256 MiB of memory"):
        list(tables.plain_rows(({"a": "x" * (4 << 20)} for _ in range(10**6)), "x"))


def lines(path, *prompts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))


def prompts(rows):
    return [row.record["prompt"] for row in rows]


@pytest.mark.parametrize(
    ("files", "train", "held_out"),
    [
        ("a.jsonl b.ndjson", "a b", ""),
        ("train.jsonl test.jsonl", "train", "test"),
        (
            "data/test-0-of-1.jsonl data/train-0-of-1.jsonl more.jsonl",
            "more train-0-of-1",
            "test-0-of-1",
        ),
        ("train/x.jsonl test/y.jsonl validation/z.jsonl", "x", "y"),
        ("a.jsonl val.jsonl", "a", "val"),
        ("testing.jsonl contest.jsonl", "contest testing", ""),
        ("test.jsonl", "test", ""),
        ("dev.jsonl .hidden.jsonl a.jsonl", "a", "dev"),
    ],
)
def test_a_folder_has_a_held_out_part_by_its_names(tmp_path, files, train, held_out):
    root = tmp_path / "test data"  # the folder's own name says nothing
    for name in files.split():
        lines(root / name, (root / name).stem)
    (root / "README.md").write_text("# no data")
    (root / "dataset_info.json").write_text("{}")
    found = read_data(str(root))
    assert (prompts(found.train), prompts(found.held_out)) == (train.split(), held_out.split())
    other = root / files.split()[0]
    other.write_text(other.read_text() + "\n")
    assert read_data(str(root)).digest != found.digest


def test_a_folder_without_records_is_one_line(tmp_path):
    (tmp_path / "README.md").write_text("# no data")
    with pytest.raises(InputError, match=r"holds no file that ends in \.jsonl, \.ndjson, \.json, "):
        read_data(str(tmp_path))


@pytest.fixture
def loaded(monkeypatch):
    """What `datasets.load_dataset` was asked for; it has three rows."""
    asked = []

    def load_dataset(name, config, **options):
        asked.append((name, config, options))
        return [{"prompt": f"{i}?", "answer": np.int64(i)} for i in range(3)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    return asked


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:a/b", ("a/b", None, "train")),
        ("hub:a/b:c", ("a/b", "c", "train")),
        ("hub:a/b:c:test", ("a/b", "c", "test")),
        ("hub:a/b::test[:5%]", ("a/b", None, "test[:5%]")),
    ],
)
def test_a_data_set_of_the_hub(loaded, source, asked):
    found = read_data(source)
    assert loaded == [(asked[0], asked[1], {"split": asked[2]})]
    assert found.train[2] == (f"row 3 of {source}", {"prompt": "2?", "answer": 2})
    assert len(found.digest) == 16 and not found.held_out


def test_a_name_of_the_hub_without_its_mark_is_told():
    with pytest.raises(InputError, match="no file or folder a/b-c; a data set of the hub is hub:a"):
        read_data("a/b-c")
    with pytest.raises(InputError, match=r"cannot read a/b.json: No such file"):
        read_data("a/b.json")


def test_the_hub_without_a_name_or_its_package(monkeypatch):
    for source in ("hub:", "hub:a", "hub:a/b/c"):
        with pytest.raises(InputError, match=r"expected hub:OWNER/NAME\[:CONFIG\[:SPLIT\]\]"):
            read_data(source)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="--data PATH takes JSON, CSV and parquet files"):
        read_data("hub:a/b")
