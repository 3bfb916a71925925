from __future__ import annotations

from nnunetv2.report.markup import Markup, element, interval, joined, percent, score, table


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", 'a < b & "c"', element("b", "<i>")) == "<p>a &lt; b &amp; &quot;c&quot;<b>&lt;i&gt;</b></p>"
    assert isinstance(element("p"), Markup)


def test_values_of_attributes_cannot_leave_their_quotes() -> None:
    assert element("img", src="x", alt='" onerror="alert(1)', class_=None) == '<img src="x" alt="&quot; onerror=&quot;alert(1)">'
    assert element("div", aria_label="<x>", class_="a") == '<div aria-label="&lt;x&gt;" class="a"></div>'


def test_lists_are_taken_apart_and_nothing_leaves_nothing() -> None:
    assert joined(["a", [None, "b"]], None, 3) == "ab3"


def test_a_table_has_headings_for_columns_and_rows() -> None:
    written = table(["class", "n"], [["<a>", 3]], caption="counts")
    assert '<th scope="col">class</th>' in written
    assert '<th scope="row">&lt;a&gt;</th><td>3</td>' in written
    assert "<thead>" not in table(None, [["a", 1]], caption="facts")


def test_numbers_have_sensible_digits_and_intervals() -> None:
    assert (score(0.8349), percent(0.8349), score(float("nan"))) == ("0.83", "83 %", "–")
    assert interval(0.8349, {"low": 0.7, "high": 0.9, "draws": 5}, percent).endswith("(70–90)</span>")
    assert interval(0.8349, {"low": float("nan"), "high": float("nan"), "draws": 0}, score) == "<span>0.83</span>"
