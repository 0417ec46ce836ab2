"""Tokenizers and chat templates of whatever content: a text, or one line, in little memory."""

import base64
import json
import os

import pytest
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.tokens import chat_template as module
from springroll.tokens.chat_template import chat_template
from springroll.tokens.growth import growth
from springroll.tokens.tokenizer import HfTokenizer, open_tokenizer
from springroll.tokens.world_tokenizer import FILE, read_vocabulary
from springroll.worker import Worker
from tests.hostile import EXAMPLES, anything, damaged, fuzz, other_json
from tests.tokens.test_tokenizer import llama_like, write
from tests.tokens.world_vocabulary import write_vocabulary

MESSAGES = [{"role": "user", "content": "hi"}]
FILES = {
    "tokenizer_config": {
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
    },
    "config": {"vocab_size": 260, "eos_token_id": 257, "pad_token_id": 0, "model_type": "llama"},
    "generation_config": {"eos_token_id": [257, 259]},
}


def as_bytes(value):
    return json.dumps(value).encode()


def texts_go_through(tokenizer):
    assert all(type(token) is int and 0 <= token < 2**31 for token in tokenizer.end)
    assert type(tokenizer.pad) is int and 0 <= tokenizer.pad < 2**31
    tokenizer.decode(tokenizer.encode("hi 1+1"))
    tokenizer.encode_all(["a", "b"])


@pytest.mark.parametrize("examples", EXAMPLES)
def test_tokenizer(examples, tmp_path):
    llama_like(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    write(tmp_path, tokenizer_config=FILES["tokenizer_config"])

    def read(content):
        (tmp_path / "tokenizer.json").write_bytes(content)
        texts_go_through(open_tokenizer(tmp_path))

    inputs = st.one_of(other_json(whole).map(as_bytes), damaged(as_bytes(whole)))
    fuzz(examples, inputs, read)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_what_stands_beside_a_tokenizer(examples, tmp_path):
    llama_like(tmp_path)

    def read(changed):
        name, content = changed
        write(tmp_path, **FILES)
        (tmp_path / f"{name}.json").write_bytes(content)
        texts_go_through(open_tokenizer(tmp_path))

    changed = lambda name: st.tuples(
        st.just(name),
        st.one_of(other_json(FILES[name]).map(as_bytes), damaged(as_bytes(FILES[name]))),
    )
    fuzz(examples, st.sampled_from(sorted(FILES)).flatmap(changed), read)


_VALUES = st.sampled_from(
    ["messages", "messages[0].content", "x", "1", "-7", "9**9", "'ab'", "10**9", "range(200)", "[]"]
)
_EXPRESSIONS = st.recursive(
    _VALUES,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from([*"+-*~/%", "in"]), inner),
        st.builds("{}|{}".format, inner, st.sampled_from(["tojson", "list", "join('-')", "upper"])),
        st.builds("{}|tojson(indent={})".format, inner, inner),
        st.builds("{}|center({})".format, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
    ),
    max_leaves=6,
)
_TEMPLATES = st.recursive(
    st.one_of(st.builds("{{{{ {} }}}}".format, _EXPRESSIONS), st.text(max_size=12)),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("{{% set x = {} %}}{}".format, _EXPRESSIONS, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, _EXPRESSIONS, inner),
        st.builds("{{% for x in messages %}}{}{{% endfor %}}".format, inner),
        st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner),
        st.builds("{{% macro f() %}}{}{{% endmacro %}}{{{{ f() }}}}".format, inner),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_chat_templates(examples, tmp_path):
    def read(text):
        (tmp_path / "chat_template.jinja").write_bytes(text.encode(errors="surrogatepass"))
        template = chat_template(tmp_path)
        assert template is not None and isinstance(template(MESSAGES, x="y"), str)

    whole = "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}{% endfor %}"
    as_text = lambda content: content.decode(errors="replace")
    fuzz(examples, st.one_of(_TEMPLATES, damaged(whole.encode()).map(as_text)), read)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_world_vocabularies(examples, tmp_path):
    write_vocabulary(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    path = tmp_path / "x.txt"

    def read(content):
        path.write_bytes(content)
        read_vocabulary(path)

    fuzz(examples, damaged(whole), read)


@pytest.fixture
def hasty(monkeypatch):
    """A renderer that is killed after a tenth of the time."""
    worker = Worker("springroll.tokens.template_worker", limit=1.0, what="the renderer")
    monkeypatch.setattr(module, "_renderer", lambda: worker)
    yield worker
    worker.end()


def render(folder, text, **variables):
    (folder / "chat_template.jinja").write_text(text)
    template = chat_template(folder)
    assert template is not None
    return template(MESSAGES, **variables)


def refused(folder, text, message, **variables):
    with pytest.raises(InputError, match=message) as error:
        render(folder, text, **variables)
    assert str(error.value).isprintable()


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{BODY}{% endfor %}{% endfor %}"


def test_a_template_without_end_is_killed_and_the_next_one_renders(tmp_path, hasty):
    assert render(tmp_path, "{{ messages[0].content }}") == "hi"
    first = hasty.pid
    assert render(tmp_path, "{{ messages[0].role }}") == "user" and hasty.pid == first
    refused(tmp_path, LOOP.replace("{BODY}", ""), "refuses these messages: it takes more than 10 s")
    assert render(tmp_path, "{{ messages[0].content }}") == "hi" and hasty.pid != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ 'a' * 10**10 }}", "it takes more than 512 MiB of memory"),
        ("{{ 'a'|center(10**10) }}", "it takes more than 512 MiB of memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}"
            "{% endfor %}",
            "it takes more than 512 MiB of memory",
        ),
        ("{% if 1 %}" * 3000, "is none: "),
        (LOOP.replace("{BODY}", "a" * 100), "its text is longer than 10,000,000 characters"),
        ("{{ messages|tojson(default=raise_exception) }}", "unexpected keyword argument 'default'"),
        ("{{ messages|tojson(cls=messages) }}", "unexpected keyword argument 'cls'"),
        ("{{ raise_exception('\\x1b[2J') }}", "refuses these messages: \ufffd.2J"),
        ("x" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_template_has_limits(tmp_path, text, message):
    refused(tmp_path, text, message)


def test_options_of_tojson_are_those_of_transformers(tmp_path):
    text = "{{ {'b': 1, 'a': 'ä'}|tojson(%s) }}"
    assert render(tmp_path, text % "") == '{"b": 1, "a": "ä"}'
    assert (
        render(tmp_path, text % "ensure_ascii=true, sort_keys=true") == '{"a": "\\u00e4", "b": 1}'
    )
    assert render(tmp_path, text % "separators=(',', ':')") == '{"b":1,"a":"ä"}'


def test_variables_are_what_json_can_say(tmp_path):
    tools = [{"name": "add", "parameters": {"x": [1, 2.5, None, True]}}]
    assert render(tmp_path, "{{ tools|tojson }}", tools=tools) == json.dumps(tools)
    refused(tmp_path, "{{ f }}", "takes what JSON can say, and not: .*function", f=lambda: 1)


@pytest.mark.parametrize(
    "line",
    [
        "1 10000000000 10000000000",  # as bytes it would be ten gigabytes
        "1 '" + "(" * 100 + "' 3",
        f"{2**31} 'a' 1",
        f"{'9' * 5000} 'a' 1",
        "0 'a' 1",
        "1 'a' + 'b' 2",
        "1 " + "-" * 10_000 + "'a' 1",
    ],
)
def test_a_line_of_a_vocabulary_is_one_text(tmp_path, line):
    write_vocabulary(tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"line \d+ of .* is damaged"):
        read_vocabulary(path)


def test_a_large_file_or_a_pipe_is_not_read(tmp_path):
    llama_like(tmp_path)
    for name in ("config.json", "tokenizer_config.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(33_000_000)
        with pytest.raises(InputError, match=rf"{name}: it is larger than 32 MB"):
            open_tokenizer(tmp_path)
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(InputError, match="a pipe or a device"):
        open_tokenizer(tmp_path)


def test_tokens_that_are_none_are_passed_over(tmp_path):
    """Published configs have a padding token of -1."""
    llama_like(tmp_path)
    write(tmp_path, config={"pad_token_id": -1, "eos_token_id": [2, True, 10**30, "</s>", -1]})
    found = open_tokenizer(tmp_path)
    assert isinstance(found, HfTokenizer)
    assert (found.end, found.pad) == ({2}, 2)


def test_anything_is_what_json_can_say():
    """The inputs of these tests reach the readers."""
    fuzz(50, anything, lambda value: json.loads(json.dumps(value)))


def changed_tokenizer(folder, **parts):
    llama_like(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


_DOUBLED = [replace("aa", String="a")] * 64
_A = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": _DOUBLED}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Sequence", "normalizers": _DOUBLED}],
            }
        },
        {"decoder": {"type": "Sequence", "decoders": _DOUBLED}},
        {"normalizer": replace("b" * 2000, Regex="x*")},
        {"normalizer": {"type": "Prepend", "prepend": "b" * 2000}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [_A] * 2000,
                "pair": [_A],
                "special_tokens": {},
            }
        },
    ],
)
def test_a_tokenizer_that_makes_much_of_little_is_refused(tmp_path, parts):
    changed_tokenizer(tmp_path, **parts)
    with pytest.raises(InputError, match=r"can make a text more than 1,000 times as long"):
        open_tokenizer(tmp_path)


def test_steps_of_published_tokenizers_are_read(tmp_path):
    llama2 = [{"type": "Prepend", "prepend": "\u2581"}, replace("\u2581", String=" ")]
    changed_tokenizer(tmp_path, normalizer={"type": "Sequence", "normalizers": llama2})
    assert open_tokenizer(tmp_path).vocab == 260
    entries = b"ab\0" + "\ufdfa".encode() * 11 + b"\0"
    charsmap = base64.b64encode((8).to_bytes(4, "little") + bytes(8) + entries).decode()
    assert growth({"type": "Precompiled", "precompiled_charsmap": charsmap}) == 33


def test_a_token_has_a_length(tmp_path):
    changed_tokenizer(
        tmp_path, model={"type": "BPE", "vocab": {"a": 0, "b" * 10_001: 1}, "merges": []}
    )
    with pytest.raises(InputError, match="has a token of 10,001 characters"):
        open_tokenizer(tmp_path)


def test_a_regular_expression_that_never_ends_is_one_line(tmp_path, capfd):
    """The package gives up after some tries, with a panic that no `except Exception` sees."""
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    changed_tokenizer(tmp_path, pre_tokenizer=split)
    with pytest.raises(InputError, match=r"the tokenizer of .* fails: .*retry-limit"):
        open_tokenizer(tmp_path).encode("a" * 40 + "b")
    assert "panicked" in capfd.readouterr().err  # which the package prints and we cannot prevent
