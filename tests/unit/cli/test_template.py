"""``--format`` understands Go's templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.cli.template import Template, TemplateError, go_json, go_print

VALUE: dict[str, Any] = {
    "Name": "/web",
    "List": ["a", "b", "c"],
    "Empty": [],
    "Nil": None,
    "Zero": 0,
    "Number": 42,
    "Float": 1.5,
    "Yes": True,
    "Config": {"Env": ["A=1", "B=2"], "Labels": {"com.example": "x", "b": "y"}},
    "Label": lambda name: {"k": "v"}.get(name, ""),
}


def render(template: str, value: Any = VALUE, **options: Any) -> str:
    return Template(template, **options).execute(value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # fields, text, trimming, comments
        ("plain", "plain"),
        ("{{.Name}}", "/web"),
        ("{{ .Name }}!", "/web!"),
        ("{{.Config.Env}}", "[A=1 B=2]"),
        ("{{.Config.Labels}}", "map[b:y com.example:x]"),
        ("a {{- .Name -}} b", "a/webb"),
        ("a{{/* nothing */}}b", "ab"),
        ("a {{- /* nothing */ -}} b", "ab"),
        ("{{.Missing}}", "<no value>"),
        ("{{.Nil}}", "<no value>"),
        ("{{.Float}} {{.Yes}} {{.Zero}}", "1.5 true 0"),
        ('{{.Label "k"}}', "v"),
        ('{{"a }} b"}}', "a }} b"),
        ("{{`raw`}}{{'a'}}", "raw97"),
        (r'{{"\t\"\u00e9"}}', '\t"é'),
        ("{{(.Config).Env}}", "[A=1 B=2]"),
        ("{{1.5}} {{0x10}} {{true}} {{-3}}", "1.5 16 true -3"),
        # functions
        ("{{json .Config.Labels}}", '{"com.example":"x","b":"y"}'),
        ("{{json .Nil}}", "null"),
        ('{{join .List ", "}}', "a, b, c"),
        ('{{index (split .Name "w") 1}}', "eb"),
        ("{{upper .Name}} {{lower .Name}} {{title `a b`}}", "/WEB /web A B"),
        ("{{len .List}} {{len .Name}} {{len .Config}}", "3 4 2"),
        ('{{index .Config.Labels "com.example"}}', "x"),
        ('{{index .Config.Labels "none"}}', ""),
        ("{{index .List 1}}", "b"),
        ("{{slice .List 1}} {{slice .Name 1 3}}", "[b c] we"),
        ('{{printf "%s|%-5s|%5d|%05d|%q|%v|%t|%.1f|%%|%x" .Name "a" 7 7 "q" .List true 1.25 255}}',
         '/web|a    |    7|00007|"q"|[a b c]|true|1.2|%|ff'),
        ('{{print "a" 1 2 "b"}}', "a1 2b"),
        ('{{println "a" 1}}', "a 1\n"),
        ("{{pad .Name 1 2}}|{{truncate .Name 2}}", " /web  |/w"),
        ('{{html "<a&\'>"}} {{urlquery "a b/"}}', "&lt;a&amp;&#39;&gt; a+b%2F"),
        ("{{eq .Number 42}} {{ne .Number 42}} {{eq .Name `x` `/web`}}", "true false true"),
        ("{{lt 1 2}} {{le 2 2}} {{gt `b` `a`}} {{ge 1 2}}", "true true true false"),
        ("{{and .Yes .Number}} {{or .Zero .Name}} {{not .Zero}}", "42 /web true"),
        ("{{eq true 1}}", "false"),
        # pipelines
        ("{{.Name | upper}}", "/WEB"),
        ('{{.Name | printf "%s-%s" "a"}}', "a-/web"),
        ("{{.List | len | printf `%d`}}", "3"),
        # control
        ("{{if .Yes}}y{{end}}", "y"),
        ("{{if .Zero}}y{{else}}n{{end}}", "n"),
        ("{{if .Nil}}1{{else if .Empty}}2{{else if .List}}3{{else}}4{{end}}", "3"),
        ("{{if and .Yes (gt .Number 41)}}y{{end}}", "y"),
        ("{{with .Config}}{{.Env}}{{end}}", "[A=1 B=2]"),
        ("{{with .Nil}}x{{else}}none{{end}}", "none"),
        ("{{with $c := .Config}}{{len $c.Env}}{{end}}", "2"),
        ("{{range .List}}<{{.}}>{{end}}", "<a><b><c>"),
        ("{{range $i, $e := .List}}{{$i}}{{$e}} {{end}}", "0a 1b 2c "),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "b=y;com.example=x;"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{range .List}}{{if eq . `b`}}{{break}}{{end}}{{.}}{{end}}", "a"),
        ("{{range .List}}{{if eq . `b`}}{{continue}}{{end}}{{.}}{{end}}", "ac"),
        ("{{range .List}}{{$.Name}}{{end}}", "/web/web/web"),
        # variables
        ("{{$x := 1}}{{$x}}", "1"),
        ("{{$x := ``}}{{range .List}}{{$x = .}}{{end}}{{$x}}", "c"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{end}}{{$x}}", "1"),
    ],
)  # fmt: skip
def test_templates_give_what_go_gives(template: str, expected: str) -> None:
    assert render(template) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{", "unclosed action"),
        ("{{.Name", "unclosed action"),
        ("{{}}", "missing value for command"),
        ("{{if}}x{{end}}", "missing value for if"),
        ("{{if .Yes}}", "unexpected EOF"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{else}}", "unexpected {{else}}"),
        ("{{if .Yes}}{{else}}{{else}}{{end}}", "unexpected {{else}}"),
        ("{{nope .}}", 'function "nope" not defined'),
        ("{{(.Name}}", "unclosed left paren"),
        ("{{$nope}}", 'undefined variable'),
        ("{{break}}", "outside {{range}}"),
        ("{{.Name .List}}", "is not a method but has arguments"),
        ("{{.Name.Foo}}", "can't evaluate field Foo in type string"),
        ("{{index .List 9}}", "index out of range: 9"),
        ("{{index .List `a`}}", "cannot index slice/array"),
        ("{{lt 1 `a`}}", "incompatible types"),
        ("{{len 3}}", "len of type int"),
        ("{{range .Name}}{{end}}", "range can't iterate over"),
        ("{{slice .List 9}}", "invalid slice index"),
        ("{{.Name # }}", "unexpected '#'"),
        ('{{"a" "b"}}', "can't give argument to non-function"),
        ("{{join 1 `,`}}", "error calling join"),
    ],
)  # fmt: skip
def test_bad_templates_are_refused(template: str, message: str) -> None:
    with pytest.raises(TemplateError) as failure:
        render(template)
    assert message in failure.value.message


def test_strict_templates_refuse_missing_entries() -> None:
    with pytest.raises(TemplateError, match='map has no entry for key "Missing"'):
        render("{{.Missing}}", strict=True)
    with pytest.raises(TemplateError, match="nil pointer"):
        render("{{.Nil.Foo}}", strict=True)
    assert render("{{if .Nil}}x{{end}}", strict=True) == ""


@given(st.text())
def test_text_without_actions_is_itself(text: str) -> None:
    if "{{" not in text:
        assert render(text) == text


@given(st.text(alphabet="{}-. $|()\"`'abcN:=end ifrg1", max_size=30))
def test_every_template_renders_or_is_refused(text: str) -> None:
    try:
        Template(text).execute(VALUE)
    except TemplateError:
        pass


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_json_of_any_value_can_be_read_back(value: Any) -> None:
    assert json.loads(render("{{json .}}", value)) == value
    assert json.loads(go_json(value)) == value


@given(st.lists(st.text(alphabet="abc"), max_size=5))
def test_split_undoes_join(words: list[str]) -> None:
    joined = ",".join(words)
    assert render("{{range $i, $e := split .X `,`}}{{if $i}},{{end}}{{$e}}{{end}}", {"X": joined}) == joined


@given(st.text())
def test_quoted_strings_stand_for_themselves(text: str) -> None:
    literal = json.dumps(text)
    assert render("{{" + literal + "}}") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e21, "1e+21"),
        (1e-7, "1e-07"),
        (3.0, "3"),
        ([None, True], "[<nil> true]"),
        ({"b": 1, "a": None}, "map[a:<nil> b:1]"),
    ],
)
def test_values_print_as_in_go(value: Any, text: str) -> None:
    assert go_print(value) == text
