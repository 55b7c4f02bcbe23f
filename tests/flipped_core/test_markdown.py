"""Text from outside as Markdown: a parser of GitHub's dialect sees nothing but that text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from flipped_core.markdown import Markdown, code, escape

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SAMPLES = [
    "a | b", "<script>alert(1)</script>", "`x`", "``", "[a](javascript:alert(1))", "![a](b)", "**a** _b_ ~~c~~",
    "&lt;b&gt; &#60;", "\\", "\\|", "<!-- x -->", "a\n\n# b\n- c", "<http://a.b>", "[x]: http://y", "$x$", "@me #1",
]  # fmt: skip


def inline(markdown: str) -> list[tuple[str, str]]:
    """The inline elements of a table's cell."""
    tokens = PARSER.parse(f"| head |\n|---|\n| x{markdown} |\n")
    assert sum(token.type == "td_open" for token in tokens) == 1
    [cell] = [token for token in tokens if token.type == "inline"][1:]
    return [(child.type, child.content) for child in cell.children or ()]


@settings(deadline=None)  # the machine may be busy
@given(st.one_of(st.sampled_from(SAMPLES), st.text("ab_*`|[]()<>&#~!:/.\\-+ \nhtpw", max_size=30)))
def test_escaped_text_is_only_text(text):
    found = inline(escape(text))
    assert {kind for kind, _ in found} <= {"text", "text_special"}
    shown = "".join(content for _, content in found)
    assert (
        shown.split() == ("x" + text).split()
        or shown.split() == ("x" + " ".join(text.split())).split()
    )


@settings(deadline=None)  # the machine may be busy
@given(st.one_of(st.sampled_from(SAMPLES), st.text("ab`*<>[]\\ ", min_size=1, max_size=30)))
def test_a_code_span_holds_its_text(text):
    [paragraph] = [token for token in PARSER.parse(code(text)) if token.type == "inline"]
    [child] = paragraph.children or ()
    assert child.type == "code_inline" and child.content.split() == text.split()


@pytest.mark.parametrize(
    "text, shown",
    [
        ("https://a.b", "https\\://a.b"),
        ("www.a.b", "www\\.a.b"),
        ("a_b", "a_b"),
        ("_b_", "\\_b\\_"),
    ],
)
def test_links_of_github_and_names_with_underscores(text, shown):
    assert escape(text) == shown


def test_markdown_of_ours_stays():
    assert escape(Markdown("**a**")) == "**a**"
