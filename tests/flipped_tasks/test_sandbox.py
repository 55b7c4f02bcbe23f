"""The limits of a render: what would fill the memory or take minutes is refused in one line, at once."""

import random
import time

import pytest

from flipped_core.errors import UserError
from flipped_tasks import render_limits
from flipped_tasks.promptsource import TemplateSpec
from flipped_tasks.rendering import Dropped, compile_template

ROW = {
    "text": "a kettle", "label": 1, "n": 10**9, "items": ["red", "green"], "d": {"k": "v"},
    "long": "ab " * 100_000, "half": "<!--" * 50_000, "numbers": list(range(2000)),
}  # fmt: skip


def template(prompt, choices="no ||| yes", target="{{answer_choices[label]}}"):
    return TemplateSpec(
        "hostile", prompt[:60], f"{prompt} ||| {target}", choices, True, None, (), ""
    )


def render(prompt, row=ROW, **how):
    return compile_template(template(prompt, **how)).render(row, random.Random(0))


DOUBLE = "{% set x = x + x %}" * 30
BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}{{text}}",
    "short loops": "{% for i in range(16) %}" * 6 + "{% endfor %}" * 6 + "{{text}}",
    "loops that write nothing": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for a in long %}{% for b in long %}{{ a }}{% endfor %}{% endfor %}",
    "range": "{{ range(10**9) | list }}{{text}}",
    "ljust": "{{ text.ljust(10**10) }}",
    "center, filter": "{{ text | center(10**10) }}",
    "center, a constant": "{{ 'x' | center(10**10) }}",
    "zfill": "{{ '1'.zfill(n * 10) }}",
    "format": "{{ '{:10000000000}'.format(1) }}{{text}}",
    "format, nested": "{{ ('{0:{1}' ~ '}').format(1, n) }}{{text}}",
    "format, precision": "{{ '{:.999999999f}'.format(1.5) }}{{text}}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}{{text}}",
    "format, many fields": "{{ ('{0}' * 100).format(long) }}",
    "percent": "{{ ('%1000000000d' % 1) }}{{text}}",
    "percent, star": "{{ ('%*d' % (n, 1)) }}{{text}}",
    "percent, many": "{{ (('%(a)s' * 1000) % {'a': long}) }}",
    "format, filter": "{{ '%01000000000d' | format(1) }}{{text}}",
    "times": "{{ ('x' * 10**10) }}{{text}}",
    "times, from the right": "{{ (n * text) }}",
    "times, a list": "{{ ([0] * n) | length }}{{text}}",
    "power": "{{ (10 ** n) | string | length }}{{text}}",
    "squares": "{% set x = 10 %}" + "{% set x = x * x %}" * 40 + "{{ x }}{{text}}",
    "doubling with ~": "{% set x = text %}" + "{% set x = x ~ x %}" * 34 + "{{ x }}",
    "doubling with +": "{% set x = text %}" + DOUBLE + "{{ x }}",
    "doubling a list": "{% set x = items %}" + DOUBLE + "{{ x }}",
    "a list that holds itself twice": "{% set x = items %}" + "{% set x = [x, x] %}" * 30 + "{{ x }}",
    "a tuple that does": "{% set x = items %}" + "{% set x = (x, x) %}" * 30 + "{{ x == x }}{{x}}",
    "a dict that does": "{% set x = d %}" + "{% set x = {'a': x, 'b': x} %}" * 30 + "{{ x }}",
    "dict()": "{% set x = d %}" + "{% set x = dict(a=x, b=x) %}" * 30 + "{{ x | tojson }}",
    "zip": "{% set x = items %}" + "{% set x = zip(x, x) | list %}" * 30 + "{{ x }}",
    "zip in a namespace": "{% set ns = namespace(x=items) %}"
    + "{% for a in zip([ns.x], [ns.x]) %}{% set ns.x = a %}{% endfor %}" * 30 + "{{ ns.x }}",
    "replace": "{{ long.replace('', long) }}",
    "replace, filter": "{{ long | replace('a', long) }}",
    "join": "{{ long.join(numbers | map('string')) }}",
    "join, filter": "{{ numbers | join(long) }}",
    "translate": "{{ long.translate({97: long}) }}",
    "expandtabs": "{{ '\t'.expandtabs(n) }}{{text}}",
    "indent": "{{ text | indent(n) }}",
    "batch": "{{ items | batch(n, 'x') | list }}",
    "slice": "{{ items | slice(n) | list }}",
    "tojson": "{{ items | tojson(indent=n) }}",
    "round": "{{ 1.5 | round(n, 'ceil') }}{{text}}",
    "to_bytes": "{{ (1).to_bytes(n * 10, 'big') }}{{text}}",
    "striptags": "{{ half | striptags }}",
    "urlize": "{{ long | urlize }}",
    "wordwrap": "{{ long | wordwrap(1) }}",
    "strip": "{{ long.strip(long) }}",
    "rfind": "{{ long.rfind(long) }}{{text}}",
    "sum of lists": "{{ numbers | batch(1) | sum(start=[]) }}{{ ([numbers] * 300) | sum(start=[]) }}",
    "map": "{{ numbers | map('center', 9999) | join }}",
    "much, bit by bit": "{% for i in range(99999) %}{{ long | upper }}{% endfor %}",
    "too long": "x" * 70_000 + "{{text}}",
    "brackets": "{{ " + "(" * 5000 + "text" + ")" * 5000 + " }}",
    "blocks": "{% if text %}" * 3000 + "x" + "{% endif %}" * 3000,
    "loops in loops": "{% for a in items %}" * 30 + "x" + "{% endfor %}" * 30,
    "half a character": "{{ '\\ud800' }}{{text}}",
    "constant that cannot be computed": "{{ {[]: 1} }}{{text}}",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name):
    began = time.process_time()
    with pytest.raises(UserError, match="template .* of hostile"):
        render(BOMBS[name])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["{{ 'x' * 10**10 }}", "{{ range(9**9) }}", "{{ items * n }}"])
def test_choices_are_bounded_too(text):
    with pytest.raises(UserError, match="refused by the sandbox"):
        render("{{text}} ?", choices="no ||| " + text)
    with pytest.raises(UserError, match="at most 10,000 choices"):
        render("{{text}} ?", choices="{{ numbers | join('|||') }}|||" * 6 + "a")


def test_what_a_template_makes_in_all_is_bounded():
    many = "{% for i in range(999) %}{% set x = long ~ i %}{% endfor %}{{text}}"
    with pytest.raises(UserError, match="it makes values of"):
        render(many)


def test_the_clock_is_the_last_resort(monkeypatch):
    monkeypatch.setattr(render_limits, "MAX_SECONDS", 0.05)
    with pytest.raises(UserError, match="more than 0.05 s of CPU time"):
        render("{% for i in range(99999) %}{% if long in long %}{% endif %}{% endfor %}{{text}}")


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("{{ 'ab'.center(6, '-') }}", "--ab--"),
        ("{{ '{:>4}'.format(7) }}", "7"),
        ("{{ ('%03d' % 7) }}", "007"),
        ("{{ '%s-%s' | format(1, 2) }}", "1-2"),
        ("{{ items | batch(1, 'x') | map('join') | join('/') }}", "red/green"),
        ("{{ items | map('upper') | join(', ') }}", "RED, GREEN"),
        ("{{ [3, 1, 2] | sort | join }}", "123"),
        ("{{ [1, 2] | sum }}", "3"),
        ("{{ ([1] + [2]) | join }}", "12"),
        ("{{ '<b>x</b>' | striptags }}", "x"),
        ("{{ (2 ** 10) }}", "1024"),
        ("{{ d | tojson }}", '{"k": "v"}'),
        ("{% for a in numbers[:20] %}{% if loop.last %}{{ loop.index }}{% endif %}{% endfor %}", "20"),
        ("{% for a in numbers[:20] %}{% if loop.first %}{{ loop.length }}{% endif %}{% endfor %}", "20"),
        ("{% for a, b in zip(items, [1, 2]) %}{{ a }}{{ b }}{% endfor %}", "red1green2"),
        ("{% set ns = namespace(x=0) %}{% for a in items %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ns.x}}", "2"),
        ("{{ text[-1] }}{{ items[-1] }}{{ text.split(' ')[0] }}", "egreena"),
        ("{{ {-1: 'none', 1: 'one'}[label] }}", "one"),
        ("{{ [1, 'a', text] | join('-') }}", "1-a-a kettle"),
        ("{{ items | join }}", "redgreen"),
        ("{{ [d, d] | join(', ', attribute='k') }}", "v, v"),
        ("{{ ', '.join([text, items[0].upper()]) }}", "a kettle, RED"),
        ("{{ text.split(' ', 1)[1].title() }}{{ text.startswith('a') }}", "KettleTrue"),
        ("{% set range = text %}{{ range.upper() }}", "A KETTLE"),
        ("{% for a in range(2) %}{% for b in range(2) %}{{ a }}{{ b }}{% endfor %}{% endfor %}", "00011011"),
    ],
)  # fmt: skip
def test_what_is_within_the_limits_is_as_in_jinja(prompt, expected):
    assert render(prompt).prompt == expected


@pytest.mark.parametrize(
    "prompt",
    ["{{ ', '.join([1]) }}", "{{ label.lower() }}", "{{ d.split() }}", "{{ text.split('') }}"],
)
def test_a_method_that_does_not_fit_the_row_drops_it(prompt):
    assert render(prompt) == Dropped("render_error")


@pytest.mark.parametrize(
    "target",
    ["{{answer_choices[label]}}", "{{ ['no', 'yes'][label] }}", "{{ answer_choices[label - 0] }}"],
)
def test_a_label_below_0_is_not_the_last_choice(target):
    assert render("{{text}} ?", {**ROW, "label": -1}, target=target) == Dropped("empty_target")
    assert render("{{text}} ?", {**ROW, "label": 0}, target=target).target == "no"


@pytest.mark.parametrize(
    "options, label",
    [
        (["red", "green|||blue", "white"], "white"),
        (["red|||", "green"], "red|||"),
        ([" |||x", "a"], "|||x"),
    ],
)
def test_separators_inside_a_list_stay_text(options, label):
    row = {"q": {"deep": ["a|||b"]}, "opts": options, "label": label}
    shown = "{{q.deep[0]}}: {{ answer_choices | join(', ') }}?"
    found = render(shown, row, choices="{{opts | join(' ||| ')}}", target="{{label}}")
    stripped = [option.strip() for option in options]
    assert found.choices == tuple(stripped) and found.target == label.strip()
    assert found.prompt == f"a|||b: {', '.join(stripped)}?"
    by_index = {**row, "label": options.index(label) if label in options else 0}
    same = render(shown, by_index, choices="{{opts | join(' ||| ')}}")
    assert same.target == label.strip() and same.correct == by_index["label"]
