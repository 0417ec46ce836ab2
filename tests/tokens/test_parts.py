"""What of a chat is learnt: what its template writes of the answers, up to the end of each turn."""

import pytest

from springroll.errors import InputError
from springroll.tokens.byte_tokenizer import byte_tokenizer
from springroll.tokens.parts import Part, chat_parts, marked
from springroll.tokens.tokenizer import open_tokenizer
from tests.tokens.chat_folder import CHATML, chat_folder

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Häuser?"},
    {"role": "assistant", "content": "Zwölf."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "None"},
    {"role": "user", "content": "Bye"},
]
# As Llama 2 writes it: no word for the assistant's turn, and its end only after an answer.
INST = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
# As Qwen3 does: what was thought is written in the last turn only.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As QwQ does: a thought is begun for the model.
BEGUN = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")


def learnt(folder, template, messages=CHAT, answers=(2, 4)):
    """The texts that are learnt, runs of tokens one by one, and the whole text."""
    tokenizer = open_tokenizer(chat_folder(folder, template))
    parts = chat_parts(tokenizer, messages, answers)
    whole = "".join(part.text for part in parts)
    assert whole == tokenizer.chat(messages, add_generation_prompt=False)
    (found,) = marked(tokenizer, [parts], special=False)
    assert found.tokens == tokenizer.encode(whole, special=False)
    runs, before = [], False
    for token, of_answer in zip(found.tokens, found.learnt, strict=True):
        if of_answer and not before:
            runs.append([])
        if of_answer:
            runs[-1].append(token)
        before = of_answer
    marks = {256: b"<|im_start|>", 257: b"<|im_end|>"}
    return [b"".join(marks.get(t, bytes([t & 255])) for t in run).decode() for run in runs]


@pytest.mark.parametrize(
    ("template", "messages", "texts"),
    [
        (CHATML, CHAT, ["Zwölf.<|im_end|>", "None<|im_end|>"]),
        (CHATML, CHAT[:5], ["Zwölf.<|im_end|>", "None<|im_end|>"]),
        (INST, CHAT, [" Zwölf.<|im_end|>", " None<|im_end|>"]),
        (THINKS, CHAT[:5], ["Zwölf.<|im_end|>", "<think>\n\n</think>\n\nNone<|im_end|>"]),
        (THINKS, CHAT, ["Zwölf.<|im_end|>", "None<|im_end|>"]),
        (BEGUN, CHAT, ["Zwölf.<|im_end|>", "None<|im_end|>"]),
        ("{% for m in messages %}{{ m.content }};{% endfor %}", CHAT, ["Zwölf.;", "None;"]),
    ],
)
def test_learnt_is_what_the_template_writes_of_the_answers(tmp_path, template, messages, texts):
    assert learnt(tmp_path, template, messages) == texts


def test_answers_that_are_not_named_are_read(tmp_path):
    assert learnt(tmp_path, CHATML, answers=(4,)) == ["None<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # Who speaks last is told first: no answer goes on from what was said before it.
        ("{{ messages | length }}{{ messages[0].content }}", "in another way"),
        ("{% if messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}", "too many"),
        # Ends are written after the last turn only, and not with a token.
        (
            "{% for m in messages %}{{ m.content }}{% if loop.last %}.{% endif %}{% endfor %}",
            "no token that ends a turn|in another way",
        ),
    ],
)
def test_what_a_template_does_not_tell_is_refused(tmp_path, template, message):
    with pytest.raises(InputError, match=message):
        learnt(tmp_path, template)


def test_a_token_that_two_parts_share_is_of_the_later(tmp_path):
    tokenizer = open_tokenizer(chat_folder(tmp_path))
    parts = [Part("a<|im_", False), Part("end|>b", True)]
    (found,) = marked(tokenizer, [parts], special=False)
    assert found.tokens == [ord("a"), 257, ord("b")]
    assert found.learnt == [False, True, False]  # and it ends the answer


def test_bytes_are_encoded_part_by_part():
    (found,) = marked(byte_tokenizer(), [[Part("1+", False), Part("2", True)]], special=True)
    assert found == ([0, 49, 43, 50], [False, False, False, True])
