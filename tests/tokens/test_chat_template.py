"""Chat templates: as transformers renders them, and harmless when they are hostile."""

import datetime
import json
import re
import sys

import jinja2
import pytest

from springroll.errors import InputError
from springroll.program import pip_install
from springroll.tokens import template_worker
from springroll.tokens.chat_template import chat_template, special_tokens, template_text
from tests.tokens.chat_template_golden import EXPECTED, MESSAGES, TEMPLATE, VARIABLES


@pytest.fixture
def folder(tmp_path):
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": 3}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def render(folder, text, messages=MESSAGES, **variables):
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    template = chat_template(folder)
    assert template is not None
    return template(messages, **variables)


@pytest.mark.parametrize("case", VARIABLES)
def test_the_text_is_that_of_transformers(folder, case):
    assert render(folder, TEMPLATE, **VARIABLES[case]) == EXPECTED[case]


def test_special_tokens_are_text_or_objects(folder):
    assert special_tokens(folder) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert render(folder, "{{ bos_token }}{{ eos_token }}{{ pad_token }}") == "<s></s>"


def test_the_date_is_today(folder):
    found = render(folder, "{{ strftime_now('%Y') }}")
    assert abs(int(found) - datetime.datetime.now().year) <= 1


def test_where_a_template_stands(folder):
    assert template_text(folder) is None and chat_template(folder) is None
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": "one"}))
    assert template_text(folder) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    path.write_text(json.dumps({"chat_template": named}))
    assert template_text(folder) == "three"
    path.write_text(json.dumps({"chat_template": named[:1]}))
    assert template_text(folder) is None
    (folder / "chat_template.jinja").write_text("four")
    assert template_text(folder) == "four"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ raise_exception('only users') }}", "refuses these messages: only users"),
        ("{{ messages[9].content }}", "refuses these messages: "),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: .*unsafe"),
        ("{{ messages.append(1) }}", "refuses these messages: .*safe"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses these messages: Range too big"),
        ("{% include '/etc/passwd' %}", "refuses these messages"),
        ("{% if %}", "is none: Expected an expression"),
        ("{% endif", "is none"),
    ],
)
def test_templates_that_cannot_be_used_are_one_line(folder, text, message):
    with pytest.raises(InputError, match=message) as error:
        render(folder, text)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_without_jinja_or_with_an_old_one_its_extra_is_named(monkeypatch):
    install = re.escape(pip_install("hf"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2.sandbox", None)
        with pytest.raises(InputError, match=rf"need the package 'jinja2' 3\.1\.6: {install}"):
            template_worker.environment()
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(InputError, match=rf"3\.1\.6 or newer, and 3\.1\.5 is .*{install}"):
        template_worker.environment()


def test_a_file_that_is_no_text_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"cannot read .*chat_template\.jinja"):
        chat_template(folder)
