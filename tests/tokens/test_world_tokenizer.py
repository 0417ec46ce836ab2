"""The RWKV World vocabulary: always the longest token, bytes for everything else."""

import json
import random
import types

import pytest

from springroll.errors import InputError
from springroll.tokens import world_tokenizer as module
from springroll.tokens.tokenizer import prompt_tokens
from springroll.tokens.world_tokenizer import FILE, world_tokenizer
from tests.tokens.world_vocabulary import PIECES, WORDS, write_vocabulary


@pytest.fixture
def folder(tmp_path):
    write_vocabulary(tmp_path)
    return tmp_path


def greedy(words, content):
    """At every place the longest word that fits, by trying them all."""
    tokens, start = [], 0
    by_length = sorted(words.items(), key=lambda pair: -len(pair[1]))
    while start < len(content):
        token, word = next((t, w) for t, w in by_length if content.startswith(w, start))
        tokens.append(token)
        start += len(word)
    return tokens


def test_the_longest_token_is_taken(folder):
    found = world_tokenizer(folder)
    assert found.vocab == max(found.words) + 1 == 257 + len(WORDS) - 1 + len(PIECES)
    assert [found.words[t] for t in found.encode("abcab the\n\n", special=False)] == [
        b"ab",  # "abcd" begins here and does not end here
        b"c",
        b"ab",
        b" the",
        b"\n\n",
    ]
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(
            rng.choice(["a", "b", "c", "d", " the", "ä", "日", "本", "\n", "€"]) for _ in range(30)
        )
        assert found.encode(text) == [0, *greedy(found.words, text.encode())]
        assert found.decode(found.encode(text)) == text
    assert found.encode_all(["a", ""]) == [[0, 98], [0]]


def test_zero_ends_a_text_and_unknown_tokens_are_nothing(folder):
    found = world_tokenizer(folder)
    assert (found.pad, found.end) == (0, {0})
    assert found.decode([0, 98, 0, 60000, 99]) == "ab"
    assert found.decode([0xC3 + 1]) == "\ufffd"


def test_a_chat_without_a_template(folder):
    found = world_tokenizer(folder)
    turns = [("system", "Be brief."), ("user", " One?\r\n\nTwo? \n"), ("assistant", "Yes.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert found.chat(messages) == (
        "System: Be brief.\n\nUser: One?\nTwo?\n\nAssistant: Yes.\n\nAssistant:"
    )
    assert prompt_tokens(found, "a", chat=True) == found.encode("User: a\n\nAssistant:")


def test_a_template_of_the_folder_is_used(folder):
    config = {"chat_template": "{{ messages[0].content }}!{{ x }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert world_tokenizer(folder).chat([{"role": "user", "content": "hi"}], x=1) == "hi!1"


def test_the_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "rwkv"
    package.mkdir()
    write_vocabulary(package)
    spec = types.SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    assert world_tokenizer(tmp_path / "elsewhere").encode("the") == world_tokenizer(package).encode(
        "the"
    )
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="copy it there, or: pip install rwkv"):
        world_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("257 'the' 4", "line 3 .* is damaged: \"257 'the' 4\""),
        ("257 the 3", "line 3 .* is damaged"),
        ("257 'the", "line 3 .* is damaged"),
        ("x 'the' 3", "line 3 .* is damaged"),
        ("257 [1] 1", "line 3 .* is damaged|no token for the byte"),
        ("257 __import__('os').getcwd() 3", "line 3 .* is damaged"),
        ("", "line 3 .* is damaged"),
        ("3 'the' 3", r"has no token for the byte b'\\x02'; download it again"),
    ],
)
def test_damaged_files_are_one_line(folder, line, message):
    lines = write_vocabulary(folder)
    (folder / FILE).write_text("\n".join([*lines[:2], line, *lines[3:]]), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        world_tokenizer(folder)
    (folder / FILE).write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="cannot read"):
        world_tokenizer(folder)
