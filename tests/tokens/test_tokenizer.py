"""Which tokenizer a folder holds, and what all of them have in common."""

import importlib.util
import json
import random
import re
import sys
from typing import Any

import pytest
import tokenizers

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tokens.byte_tokenizer import ByteTokenizer, is_byte_tokenizer, write_byte_tokenizer
from springroll.tokens.tokenizer import (
    HfTokenizer,
    byte_tokenizer,
    end_tokens,
    hf_tokenizer,
    open_tokenizer,
    prompt_tokens,
)
from springroll.tokens.world_tokenizer import FILE, WorldTokenizer
from tests.tokens.world_vocabulary import write_vocabulary

SPECIAL = ["<s>", "</s>", "<pad>", "<|eot|>"]


def llama_like(folder):
    """A byte-level vocabulary with special tokens that begins every text with <s>."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(folder / "tokenizer.json"))


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def llama(tmp_path):
    llama_like(tmp_path)
    write(
        tmp_path,
        config={"vocab_size": 260, "eos_token_id": 257, "model_type": "llama"},
        generation_config={"eos_token_id": [257, 259]},
        tokenizer_config={"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    )
    (tmp_path / "chat_template.jinja").write_text("{{bos_token}}{{messages[0].content}}<|eot|>")
    return tmp_path


def test_a_hugging_face_folder(llama):
    found = open_tokenizer(llama)
    assert isinstance(found, HfTokenizer)
    assert (found.vocab, found.pad, found.end) == (260, 258, {257, 259})
    tokens = found.encode("häuser am meer")  # longer than what training cut texts off at
    assert tokens[0] == 256 and len(tokens) == 16
    assert found.encode("häuser", special=False) == tokens[1:8]
    assert found.encode_all(["häuser am meer", ""]) == [tokens, [256]]
    assert found.decode([*tokens, 257, 258, 999, -1]) == "häuser am meer"


def test_a_chat_begins_once(llama):
    found = open_tokenizer(llama)
    plain, chat = prompt_tokens(found, "hi"), prompt_tokens(found, "hi", chat=True)
    assert found.chats and plain == found.encode("hi") and chat == [*plain, 259]


@pytest.mark.parametrize(
    ("files", "end", "pad"),
    [
        ({"tokenizer_config": {"eos_token": "</s>"}}, {257}, 257),
        ({"tokenizer_config": {"eos_token": {"content": "<|eot|>"}}}, {259}, 259),
        ({"config": {"eos_token_id": 257, "pad_token_id": 258}}, {257}, 258),
        ({"generation_config": {"eos_token_id": [259, 257]}}, {257, 259}, 257),
        ({"config": {"eos_token_id": None}, "generation_config": {}}, set(), 0),
        ({"tokenizer_config": {"eos_token": "unknown", "pad_token": None}}, set(), 0),
    ],
)
def test_what_ends_a_text_may_stand_in_three_files(tmp_path, files, end, pad):
    llama_like(tmp_path)
    write(tmp_path, **files)
    found = open_tokenizer(tmp_path)
    assert (found.end, found.pad) == (end, pad)


def test_a_tokenizer_larger_than_its_model_is_refused(llama):
    assert open_tokenizer(llama, vocab=300).vocab == 260  # models may have room for more
    with pytest.raises(InputError, match="has 260 tokens and the model only 259"):
        open_tokenizer(llama, vocab=259)


def test_no_template_is_one_line(llama):
    (llama / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template; give plain prompts"):
        open_tokenizer(llama).chat([{"role": "user", "content": "hi"}])
    assert not open_tokenizer(llama).chats and not byte_tokenizer().chats
    with pytest.raises(InputError, match="plain bytes has no chat template"):
        byte_tokenizer().chat([])


def test_folders_of_other_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # rwkv is not installed
    write(tmp_path, config={"vocab_size": 256})
    assert isinstance(open_tokenizer(tmp_path), ByteTokenizer)
    write(tmp_path, config={"vocab_size": 65536, "model_type": "rwkv7"})
    with pytest.raises(InputError, match=r"lacks the vocabulary rwkv_vocab_v20230424\.txt; copy"):
        open_tokenizer(tmp_path)
    write_vocabulary(tmp_path)
    assert isinstance(open_tokenizer(tmp_path), WorldTokenizer)
    (tmp_path / "config.json").unlink()
    (tmp_path / "x.pth").write_bytes(b"")
    assert isinstance(open_tokenizer(tmp_path / "x.pth", 65536), WorldTokenizer)
    assert isinstance(open_tokenizer(tmp_path, 65536), WorldTokenizer)
    (tmp_path / FILE).unlink()
    with pytest.raises(InputError, match="lacks the vocabulary"):
        open_tokenizer(tmp_path / "x.pth", 65536)
    assert isinstance(open_tokenizer(tmp_path / "x.pth", 256), ByteTokenizer)
    llama_like(tmp_path)
    assert isinstance(open_tokenizer(tmp_path), HfTokenizer)


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"holds neither tokenizer\.json nor rwkv_vocab"):
        open_tokenizer(tmp_path)
    with pytest.raises(InputError, match="is no folder; give one with"):
        open_tokenizer(tmp_path / "absent")
    write(tmp_path, config={"vocab_size": 1000}, tokenizer={})
    with pytest.raises(InputError, match=r"cannot read .*tokenizer\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is not a JSON object"):
        open_tokenizer(tmp_path)


def test_without_the_package_its_extra_is_named(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="'tokenizers': " + re.escape(pip_install("hf"))):
        open_tokenizer(llama)


def test_bytes():
    found = byte_tokenizer()
    assert (found.vocab, found.pad, found.end) == (256, 0, {0})
    assert found.encode("aä\0b") == [0, 97, 0xC3, 0xA4, 98]  # a zero would end the text
    assert found.encode("ab", special=False) == [97, 98]
    assert found.encode_all(["a", ""]) == [[0, 97], [0]]
    assert found.decode([97, 0xC3, 0xA4, 0, 300, 0xC3]) == "aä\ufffd"
    assert end_tokens(found, ("\n", "END")) == {0, 10}
    assert prompt_tokens(found, "1+1=") == [0, 49, 43, 49, 61]


def test_the_file_of_bytes_is_read_as_bytes_by_the_package(tmp_path):
    write_byte_tokenizer(tmp_path)
    package, ours = hf_tokenizer(tmp_path), byte_tokenizer()
    assert (package.vocab, package.pad, package.end) == (ours.vocab, ours.pad, ours.end)
    rng = random.Random(0)
    letters = lambda: chr(rng.choice([rng.randrange(128), rng.randrange(0xD800), 0x1F600]))
    for _ in range(100):
        text = "".join(letters() for _ in range(20))
        assert package.encode(text) == ours.encode(text)
        assert package.encode(text, special=False) == ours.encode(text, special=False)
        tokens = [rng.randrange(256) for _ in range(20)]
        assert package.decode(tokens) == ours.decode(tokens)
    assert all(package.encode(chr(c)) == ours.encode(chr(c)) for c in range(0x250))


def test_the_file_of_bytes_needs_no_package(tmp_path, monkeypatch):
    write_byte_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert isinstance(open_tokenizer(tmp_path), ByteTokenizer)


def test_a_template_beside_the_file_of_bytes_is_not_passed_over(tmp_path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    found = open_tokenizer(tmp_path)
    assert found.chats and found.chat([{"role": "user", "content": "Hi"}]) == "Hi"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "BPE"}}', " " * 200_000])
def test_other_files_are_not_taken_for_it(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    assert not is_byte_tokenizer(path)


def test_messages_are_put_into_the_template(llama, tmp_path):
    """With their tools; what the assistant has begun is gone on with."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if tools %}{{ tools[0].name }}{% endif %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    found: Any = open_tokenizer(tmp_path)
    read = lambda *prompt, **more: found.loaded.decode(
        prompt_tokens(found, [*prompt], **more), skip_special_tokens=False
    )
    user, begun = ({"role": r, "content": c} for r, c in [("user", "hi"), ("assistant", " So ")])
    assert read(user) == "[user]hi</s>[assistant]"
    assert read(user, tools=[{"name": "add"}]) == "[user]hi</s>add[assistant]"
    assert read(user, begun, user) == "[user]hi</s>[assistant] So </s>[user]hi</s>[assistant]"
    assert read(user, begun) == "[user]hi</s>[assistant] So "
    (tmp_path / "chat_template.jinja").write_text(template.replace(".content", ".content | trim"))
    found = open_tokenizer(tmp_path)
    assert read(user, begun) == "[user]hi</s>[assistant]So"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match="changes the last message, which is to be continued"):
        prompt_tokens(open_tokenizer(tmp_path), [user, begun])
