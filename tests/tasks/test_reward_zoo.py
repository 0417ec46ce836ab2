"""Every signature of a reward function with every kind of result: the right value, or the right
refusal for the text at fault and for no other."""

import json
import math

import pytest

from springroll.tasks.user_task import function_task

TEXTS = ["a", "bbb", "cc", "dddd"]  # the second is the one at fault, where one is
GROUND = [{"prompt": f"Say {i}", "answer": str(i), "data_source": "numbers"} for i in range(8)]
TALK = [
    {
        "prompt": [{"role": "system", "content": "Say it."}, {"role": "user", "content": str(i)}],
        "data_source": "numbers",
        "reward_model": {"style": "rule", "ground_truth": str(i)},
        "extra_info": {"index": i},
    }
    for i in range(8)
]

SIGNATURES = {  # what a function takes, what it makes sure of, and the texts in it
    "texts": ("def f(texts)", "assert texts", "texts"),
    "any name": ("def f(answers, scale=2)", "assert scale == 2", "answers"),
    "texts, records": (
        "def f(texts, records)",
        "assert all(r['answer'] for r in records)",
        "texts",
    ),
    "TRL": (
        "def f(prompts, completions, **kwargs)",
        "assert prompts[0].startswith('Say') and len(kwargs['answer']) == len(prompts)",
        "completions",
    ),
    "TRL columns": (
        "def f(completions, answer, log_extra=None, **kwargs)",
        "assert len(answer) == len(completions) and log_extra is None",
        "completions",
    ),
    "TRL async": (
        "async def f(prompts, completions, **kwargs)",
        "await asyncio.sleep(0); assert prompts[0].startswith('Say')",
        "completions",
    ),
    "TRL conversational": (
        "def f(prompts, completions, **kwargs)",
        "assert prompts[0][-1]['role'] == 'user' and completions[0][0]['role'] == 'assistant'",
        "[c[0]['content'] for c in completions]",
    ),
    "verl": (
        "def f(data_source, solution_str, ground_truth, extra_info=None)",
        "assert (data_source, str(extra_info['index'])) == ('numbers', ground_truth)",
        "solution_str",
    ),
    "verl in another order": (
        "def f(solution_str, ground_truth, **kwargs)",
        "assert int(ground_truth) >= 0 and not kwargs",
        "solution_str",
    ),
    "verl without extras": (
        "def f(data_source, solution_str, ground_truth, extra_info)",
        "assert (data_source, extra_info) == ('numbers', {}) and int(ground_truth) >= 0",
        "solution_str",
    ),
    "verl async": (
        "async def f(data_source, solution_str, ground_truth, extra_info=None)",
        "await asyncio.sleep(0); assert data_source == 'numbers'",
        "solution_str",
    ),
    "verl batch": (
        "def f(data_sources, solution_strs, ground_truths, extra_infos=None)",
        "assert [str(i['index']) for i in extra_infos] == ground_truths",
        "solution_strs",
    ),
}
ALONE = {name for name, (head, _, _) in SIGNATURES.items() if "solution_str," in head}
TALKING = {"TRL conversational", "verl", "verl in another order", "verl async", "verl batch"}
FAULT = "(v[:v.index(3)] + [{}] + v[v.index(3) + 1:] if 3 in v else v)"
KINDS = {  # of the lengths v of the texts: what is returned, what that is worth, and the failure
    "floats": ("[float(x) for x in v]", [1, 3, 2, 4], {}),
    "ints": ("v", [1, 3, 2, 4], {}),
    "bools": ("[x > 2 for x in v]", [0, 1, 0, 1], {}),
    "tuple": ("tuple(v)", [1, 3, 2, 4], {}),
    "generator": ("(x / 2 for x in v)", [0.5, 1.5, 1, 2], {}),
    "numpy": ("np.array(v, np.float16)", [1, 3, 2, 4], {}),
    "numpy scalars": ("[np.float64(x) for x in v]", [1, 3, 2, 4], {}),
    "jax": ("jnp.asarray(v)", [1, 3, 2, 4], {}),
    "dicts": ("[{'reward': x, 'correct': True} for x in v]", [1, 3, 2, 4], {}),
    "dicts of verl": ("[{'score': x, 'acc': x > 2, 'note': 'n'} for x in v]", [1, 3, 2, 4], {}),
    "None": (FAULT.format("None"), [1, None, 2, 4], {"none": 1}),
    "None in a dict": (FAULT.format("{'score': None}"), [1, None, 2, 4], {"none": 1}),
    "NaN": (FAULT.format("math.nan"), [1, None, 2, 4], {"nan": 1}),
    "infinity": (FAULT.format("np.float32('-inf')"), [1, None, 2, 4], {"nan": 1}),
    "text": (FAULT.format("'3'"), [1, None, 2, 4], {"wrong": 1}),
    "array": (FAULT.format("np.ones(3)"), [1, None, 2, 4], {"wrong": 1}),
    "list": (FAULT.format("[3.0]"), [1, None, 2, 4], {"wrong": 1}),
    "dict of something": (FAULT.format("{'points': 3}"), [1, None, 2, 4], {"wrong": 1}),
    "exception": (FAULT.format("[][0]").replace("v[:", "1 // 0 or v[:"), [1, None, 2, 4], "raised"),
    "wrong length": ("v[1:]", [None] * 4, {"wrong": 4}),
    "nothing": ("None", [None] * 4, {"wrong": 4}),
}
pytestmark = pytest.mark.filterwarnings("ignore:coroutine")


def zoo(tmp_path, signature, kind, **options):
    """A task with that function."""
    head, check, texts = SIGNATURES[signature]
    made, *_ = KINDS[kind]
    if signature in ALONE:
        result = f"v = [len({texts})]\n    found = {made}\n    return next(iter(found))"
    else:
        result = f"v = [len(text) for text in {texts}]\n    return {made}"
    source = f"import asyncio, math\nimport numpy as np\nimport jax.numpy as jnp\n{head}:\n"
    (tmp_path / "zoo.py").write_text(f"{source}    {check}\n    {result}\n")
    records = TALK if signature in TALKING else GROUND
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    return function_task(f"{tmp_path}/zoo.py:f", data=f"{tmp_path}/data.jsonl", **options)


def check(task, worth, failures):
    found = task.score([task.train(i) for i in range(len(TEXTS))], TEXTS)
    rewards = [None if math.isnan(verdict.reward) else verdict.reward for verdict in found]
    assert rewards == worth
    assert task.failures.counts == ({failures: 1} if isinstance(failures, str) else failures)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signature", SIGNATURES)
def test_every_signature_with_every_kind_of_result(tmp_path, signature, kind):
    _, worth, failures = KINDS[kind]
    if signature in ALONE and kind in ("wrong length", "nothing"):
        failures = {"raised": 4}  # there is nothing to hand out
    check(zoo(tmp_path, signature, kind), worth, failures)


@pytest.mark.parametrize(
    "signature",
    ["verl async", *(pytest.param(each, marks=pytest.mark.slow) for each in ("verl", "TRL async"))],
)
def test_in_a_process_of_its_own_as_well(tmp_path, signature):
    _, worth, failures = KINDS["exception"]
    task = zoo(tmp_path, signature, "exception", isolated=True, workers=1, rows=4)
    check(task, worth, failures)
    task.close()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int64"])
def test_tensors_of_torch(tmp_path, monkeypatch, dtype):
    pytest.importorskip("torch")
    worth = [1, 1, 1, 1] if dtype == "bool" else [1, 3, 2, 4]
    made = f"__import__('torch').tensor(v, dtype=__import__('torch').{dtype})"
    monkeypatch.setitem(KINDS, "torch", (made, worth, {}))
    for signature in ("texts", "TRL", "verl"):
        check(zoo(tmp_path, signature, "torch"), worth, {})
