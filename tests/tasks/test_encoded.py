"""Examples in rows: what is read, what is learnt, and what is left out."""

import numpy as np
import pytest

from springroll.errors import InputError
from springroll.tasks.encoded import batches, encoded, rows_of, sample_of
from springroll.tasks.examples import Example
from springroll.tokens.byte_tokenizer import byte_tokenizer
from springroll.tokens.tokenizer import open_tokenizer
from tests.tokens.chat_folder import chat_folder


def pairs(*texts):
    return [Example(f"line {i}", None, (), prompt=p, answer=a) for i, (p, a) in enumerate(texts, 1)]


def spelt(numbers):
    return "".join(chr(n) if n > 0 else "." for n in numbers)


def test_each_answer_token_is_the_target_of_what_stands_before_it():
    found = encoded(pairs(("1+1=", "2"), ("a", "bc")), byte_tokenizer(), 12)
    rows = found.rows([[0, 1]], 12)
    assert spelt(rows.tokens[0]) == ".1+1=2.abc.."
    assert rows.targets[0].tolist() == [-1, -1, -1, -1, 50, 0, -1, 98, 99, 0, -1, -1]
    assert rows.segments[0].tolist() == [1] * 6 + [2] * 4 + [0] * 2
    assert rows.counted.tolist() == [5.0]


def test_a_text_is_cut_into_rows_and_nothing_of_it_is_lost():
    text = "0123456789"
    found = encoded(pairs(("", text)), byte_tokenizer(), 4)
    assert found.places.tolist() == [4, 4, 3]
    rows = found.rows([[0], [1], [2]], 4)
    targets = rows.targets[rows.targets >= 0]
    assert bytes(targets.tolist()) == text.encode() + b"\0"


def test_what_cannot_be_learnt_from_is_counted_and_the_first_is_told():
    texts = [("a", "b"), ("c", ""), ("d" * 20, "e"), ("f" * 30, "g"), ("h", "")]
    found = encoded(pairs(*texts), byte_tokenizer(), 8)
    assert len(found.places) == 1
    assert found.left_out.line == (
        "2 without an answer (line 2); 2 longer than 8 tokens (line 3 has 22)"
    )
    with pytest.raises(InputError, match=r"no record can be learnt from: .*--sequence 32 holds"):
        encoded(pairs(*texts[2:]), byte_tokenizer(), 8)


def test_chats_that_a_template_refuses_are_left_out(tmp_path):
    template = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not so') }}"
    template += "{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = open_tokenizer(chat_folder(tmp_path, template))
    chat = lambda text: [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and so on, which no answer follows"},
    ]
    chats = [Example(f"line {i}", chat(t), (1,)) for i, t in enumerate(("a", "no", "b"), 1)]
    found = encoded(chats, tokenizer, 16)
    assert found.places.tolist() == [5, 5]  # what follows the last answer is cut off
    assert "1 that the chat template does not take (line 2: " in found.left_out.line
    rows = found.rows([[0, 1]], 16)
    assert spelt(rows.targets[0][rows.targets[0] >= 0]) == "yesāyesā"  # 257, the end of a turn


def test_a_template_that_takes_nothing_is_asked_a_few_times(tmp_path):
    tokenizer = open_tokenizer(chat_folder(tmp_path, "{{ raise_exception('not so') }}"))
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats = [Example(f"line {i}", chat, (1,)) for i in range(1000)]
    with pytest.raises(InputError, match=r"none of the first 20 chats can be used: .*not so"):
        encoded(chats, tokenizer, 16)


def test_batches_are_functions_of_the_step_and_epochs_take_every_row():
    texts = [(f"{i}=", "x" * (i % 5 + 1)) for i in range(40)]
    found = encoded(pairs(*texts), byte_tokenizer(), 16)
    rows = rows_of(found, range(40), 16, packing=True)
    batch = batches(found, rows, 4, 16, seed=3)
    again = batches(found, rows, 4, 16, seed=3)
    for step in (0, 7, 2):
        for a, b in zip(batch(step), again(step), strict=True):
            np.testing.assert_array_equal(a, b)
    alone = batches(found, rows_of(found, range(40), 16, packing=False), 1, 16, seed=0)
    seen = [spelt(alone(step).tokens[0]).rstrip(".") for step in range(80)]
    assert len({*seen[:40]}) == 40 and sorted(seen[:40]) == sorted(seen[40:])
    assert seen[:40] != seen[40:]
    answers = lambda rows: (rows.targets >= 0).sum()
    assert batch(5).counted.sum() == pytest.approx(answers(batch(5)), rel=1e-6)


def test_more_rows_than_there_are_is_refused():
    found = encoded(pairs(("a", "b"), ("c", "d")), byte_tokenizer(), 16)
    with pytest.raises(InputError, match="fill 1 rows of 16 tokens, and a step takes 8; lower"):
        batches(found, rows_of(found, [0, 1], 16, packing=True), 8, 16, seed=0)


@pytest.mark.parametrize("packing", [True, False])
def test_the_held_out_sample_is_bounded_and_even(packing):
    texts = [(f"{i}=", "x" * (i % 5 + 1)) for i in range(40)]
    found = encoded(pairs(*texts), byte_tokenizer(), 16)
    rows = sample_of(found, range(40), 6, 16, packing, together=4)
    assert rows.tokens.shape == (8, 16)
    assert rows.counted.sum() == pytest.approx((rows.targets >= 0).sum(), rel=1e-6)
    whole = sample_of(found, range(40), 1000, 16, packing, together=1)
    assert (whole.targets >= 0).sum() == found.answers(range(40))
