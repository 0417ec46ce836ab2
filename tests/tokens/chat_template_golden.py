"""A chat template that uses what real ones use, and what transformers 5.23.0 makes of it.

Made and compared by tests/golden/make_tokenizers.py.
"""

TEMPLATE = """\
{%- macro shown(value) -%}
    [{{ value | trim }}]
{%- endmacro %}
{{- bos_token }}
{%- set ns = namespace(turns=0) %}
{%- if tools %}
    {{- 'Tools: ' + (tools | tojson(indent=2)) + '\\n' }}
{% endif %}
{% for message in messages %}
    {% if message.role == 'hidden' %}
        {% continue %}
    {% endif %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('no role ' + message['role']) }}
    {%- endif %}
    {%- set ns.turns = ns.turns + 1 %}
<|{{ message.role }}|>{{ loop.index0 }}
    {% if message.role == 'assistant' %}
        {%- set said = (message.content.split('</think>') | last).lstrip('\\n') %}
        {%- generation -%}
{{ said }}<|end|>
        {%- endgeneration %}

    {% else %}
{{ shown(message.content) }}<|end|>
    {% endif %}
    {%- if ns.turns > 5 %}{% break %}{% endif %}
{% endfor %}
{{ {'a': '<b> & "c"', 'd': 'ä'} | tojson }} {{ unk_token is defined }} {{ year }}
{%- if add_generation_prompt %}

<|assistant|>{{ '<think>' if enable_thinking is undefined or enable_thinking }}
{%- endif %}
"""

MESSAGES = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "hidden", "content": "never"},
    {"role": "user", "content": "What is 1 < 2 & 'Ä'?\n"},
    {"role": "assistant", "content": "<think>hm</think>\n\nYes."},
    {"role": "user", "content": "And 2?"},
]

VARIABLES = {
    "plain": {"year": 2026},
    "quick": {"enable_thinking": False, "year": 1},
    "no prompt": {"add_generation_prompt": False, "year": 1},
    "tools": {"tools": [{"type": "function", "function": {"name": "f<ä>"}}], "year": 1},
}

_TURNS = """\
<|system|>0
[Be brief.]<|end|>
<|user|>2
[What is 1 < 2 & 'Ä'?]<|end|>
<|assistant|>3
Yes.<|end|>
<|user|>4
[And 2?]<|end|>
{"a": "<b> & \\"c\\"", "d": "ä"} False """

_TOOLS = """\
Tools: [
  {
    "type": "function",
    "function": {
      "name": "f<ä>"
    }
  }
]

"""

EXPECTED = {
    "plain": f"<s>{_TURNS}2026\n<|assistant|><think>",
    "quick": f"<s>{_TURNS}1\n<|assistant|>",
    "no prompt": f"<s>{_TURNS}1",
    "tools": f"<s>{_TOOLS}{_TURNS}1\n<|assistant|><think>",
}
