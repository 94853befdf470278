"""Go's text/template, as much of it as ``--format`` needs: actions, pipelines, variables, if, with, range, functions.

    Template("{{.Name}}: {{json .Config.Env}}").execute({"Name": "/web", "Config": {"Env": ["A=1"]}})

Values are what JSON gives (dict, list, str, int, float, bool, None) and any Mapping; a callable in a Mapping is a
method, called with the arguments that follow it (``{{.Label "com.example"}}``). A value prints as Go's ``%v``. Left out
are ``define``, ``template``, ``block`` and complex numbers, which no format needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from seacan.errors import InvalidParameter


class TemplateError(InvalidParameter):
    """The template cannot be parsed, or does not fit the value it is given."""


class _Missing:
    """A map's missing entry, which prints as Go prints it."""

    def __str__(self) -> str:
        return "<no value>"

    def __bool__(self) -> bool:
        return False


_MISSING: Final = _Missing()


# --- words ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
  | (?P<char>'(?:[^'\\\n]|\\.)+')
  | (?P<number>[-+]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?))
  | (?P<field>\.[^\W\d]\w*)
  | (?P<dot>\.)
  | (?P<variable>\$\w*)
  | (?P<word>[^\W\d]\w*)
  | (?P<symbol>:=|=|\||\(|\)|,)
    """,
    re.VERBOSE,
)
_ACTION = re.compile(r"\{\{(-\s)?")
_UNTIL = re.compile(r"\s*(?:\"(?:[^\"\\]|\\.)*\"|`[^`]*`|'(?:[^'\\]|\\.)*'|(?!\s-\}\}|\}\}).)*?(\s-)?\}\}", re.DOTALL)


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool
    """Whether white space stands before it: ``.A.B`` is one operand, ``.A .B`` are two."""


def _tokens(action: str) -> list[_Token]:
    tokens, position, spaced = [], 0, False
    while position < len(action):
        match = _TOKEN.match(action, position)
        if match is None:
            raise TemplateError(f"template parsing error: template: :1: unexpected {action[position]!r} in command")
        position = match.end()
        if match.lastgroup == "space":
            spaced = True
            continue
        assert match.lastgroup is not None
        tokens.append(_Token(match.lastgroup, match[0], spaced))
        spaced = False
    return tokens


# --- tree ----------------------------------------------------------------------------------------------------------


class _Scope:
    """What an expression can see: dot, the variables, the functions."""

    __slots__ = ("dot", "functions", "strict", "variables")

    def __init__(
        self,
        dot: Any,
        variables: list[tuple[str, Any]],
        functions: Mapping[str, Callable[..., Any]],
        strict: bool,
    ) -> None:
        self.dot = dot
        self.variables = variables
        self.functions = functions
        self.strict = strict

    def look_up(self, name: str) -> Any:
        for known, value in reversed(self.variables):
            if known == name:
                return value
        raise TemplateError(f"template parsing error: template: :1: undefined variable {name!r}")

    def assign(self, name: str, value: Any) -> None:
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return
        raise TemplateError(f"template parsing error: template: :1: undefined variable {name!r}")


class _Literal(NamedTuple):
    value: Any

    def call(self, scope: _Scope, arguments: Sequence[Any]) -> Any:
        if arguments:
            raise TemplateError(f"can't give argument to non-function {self.value!r}")
        return self.value


class _Path(NamedTuple):
    """An operand followed by fields: ``.A.B``, ``$x.A``, ``(pipeline).A``."""

    start: Callable[[_Scope], Any]
    fields: tuple[str, ...]
    text: str

    def call(self, scope: _Scope, arguments: Sequence[Any]) -> Any:
        value = self.start(scope)
        for index, name in enumerate(self.fields):
            last = index == len(self.fields) - 1
            value = _field(value, name, arguments if last else (), scope.strict, self.text)
        if arguments and not self.fields:
            raise TemplateError(f"can't give argument to non-function {self.text}")
        return value


class _Call(NamedTuple):
    name: str

    def call(self, scope: _Scope, arguments: Sequence[Any]) -> Any:
        function = scope.functions[self.name]
        try:
            return function(*arguments)
        except TemplateError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(
                f'template: :1: executing "" at <{self.name}>: error calling {self.name}: {error}'
            ) from error


_Operand = _Literal | _Path | _Call


class _Command(NamedTuple):
    operands: tuple[_Operand, ...]

    def evaluate(self, scope: _Scope, piped: tuple[Any, ...]) -> Any:
        first, rest = self.operands[0], self.operands[1:]
        if isinstance(first, _Call) and first.name in ("and", "or"):
            return _short_circuit(first.name, rest, scope, piped)
        arguments = [operand.call(scope, ()) for operand in rest]
        return first.call(scope, [*arguments, *piped])


def _short_circuit(name: str, operands: Sequence[_Operand], scope: _Scope, piped: Sequence[Any]) -> Any:
    if not operands and not piped:
        raise TemplateError(f"wrong number of args for {name}: want at least 1 got 0")
    value: Any = None
    for operand in operands:
        value = operand.call(scope, ())
        if _truth(value) == (name == "or"):
            return value
    return piped[0] if piped else value


class _Pipeline(NamedTuple):
    commands: tuple[_Command, ...]
    declares: tuple[str, ...] = ()
    assigns: bool = False

    def evaluate(self, scope: _Scope) -> Any:
        piped: tuple[Any, ...] = ()
        for command in self.commands:
            piped = (command.evaluate(scope, piped),)
        return piped[0]

    def bind(self, scope: _Scope, value: Any) -> None:
        for name in self.declares:
            if self.assigns:
                scope.assign(name, value)
            else:
                scope.variables.append((name, value))


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Text(NamedTuple):
    text: str

    def write(self, scope: _Scope, out: list[str]) -> None:
        out.append(self.text)


class _Print(NamedTuple):
    pipeline: _Pipeline

    def write(self, scope: _Scope, out: list[str]) -> None:
        value = self.pipeline.evaluate(scope)
        self.pipeline.bind(scope, value)
        if not self.pipeline.declares:
            out.append(go_print(value))


class _Block:
    """if, with, range: a pipeline, what follows when it is not empty, and what follows when it is."""

    __slots__ = ("body", "keyword", "otherwise", "pipeline")

    def __init__(self, keyword: str, pipeline: _Pipeline) -> None:
        self.keyword = keyword
        self.pipeline = pipeline
        self.body: list[_Node] = []
        self.otherwise: list[_Node] = []

    def write(self, scope: _Scope, out: list[str]) -> None:
        mark = len(scope.variables)
        value = self.pipeline.evaluate(scope)
        if self.keyword == "range":
            self._range(scope, out, value)
        else:
            self.pipeline.bind(scope, value)
            chosen = self.body if _truth(value) else self.otherwise
            dot = value if self.keyword == "with" and chosen is self.body else scope.dot
            _write(chosen, scope, dot, out)
        del scope.variables[mark:]

    def _range(self, scope: _Scope, out: list[str], value: Any) -> None:
        mark, empty = len(scope.variables), True
        for key, item in _items(value):
            empty = False
            names = self.pipeline.declares
            bound = dict(zip(names, (key, item) if len(names) == 2 else (item,), strict=False))
            for name, element in bound.items():
                if self.pipeline.assigns:
                    scope.assign(name, element)
                else:
                    scope.variables.append((name, element))
            try:
                _write(self.body, scope, item, out)
            except _Break:
                break
            except _Continue:
                continue
            finally:
                del scope.variables[mark:]
        if empty:
            _write(self.otherwise, scope, scope.dot, out)


class _Jump(NamedTuple):
    exception: type[Exception]

    def write(self, scope: _Scope, out: list[str]) -> None:
        raise self.exception


_Node = _Text | _Print | _Block | _Jump


def _write(nodes: Sequence[_Node], scope: _Scope, dot: Any, out: list[str]) -> None:
    outer, scope.dot = scope.dot, dot
    try:
        for node in nodes:
            node.write(scope, out)
    finally:
        scope.dot = outer


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    match value:
        case None | _Missing():
            return
        case Mapping():
            for key in sorted(value):
                yield key, value[key]
        case str():
            raise TemplateError(f"range can't iterate over {value}")
        case bool():
            raise TemplateError(f"range can't iterate over {go_print(value)}")
        case int():
            yield from ((number, number) for number in range(value))
        case Sequence():
            yield from enumerate(value)
        case _:
            raise TemplateError(f"range can't iterate over {value}")


def _field(value: Any, name: str, arguments: Sequence[Any], strict: bool, text: str) -> Any:
    if isinstance(value, Mapping):
        if name not in value:
            if strict:
                raise TemplateError(f'template: :1:2: executing "" at <{text}>: map has no entry for key "{name}"')
            return _MISSING
        found = value[name]
        if callable(found):
            try:
                return found(*arguments)
            except TypeError as error:
                raise TemplateError(f'template: :1: executing "" at <{text}>: {error}') from error
        if arguments:
            raise TemplateError(f'template: :1: executing "" at <{text}>: {name} is not a method but has arguments')
        return found
    if value is None or value is _MISSING:
        if strict:
            raise TemplateError(
                f'template: :1:2: executing "" at <{text}>: nil pointer evaluating interface {{}}.{name}'
            )
        return _MISSING
    raise TemplateError(
        f'template: :1:2: executing "" at <{text}>: can\'t evaluate field {name} in type {_go_type(value)}'
    )


def _go_type(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case int():
            return "int"
        case float():
            return "float64"
        case Mapping():
            return "map[string]interface {}"
        case Sequence():
            return "[]interface {}"
        case _:
            return "interface {}"


def _truth(value: Any) -> bool:
    return bool(value)


def go_print(value: Any) -> str:
    """A value as Go's ``%v`` prints what encoding/json decoded."""
    match value:
        case None | _Missing():
            return "<no value>"
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return _go_float(value)
        case Mapping():
            return f"map[{' '.join(f'{key}:{_inner(value[key])}' for key in sorted(value))}]"
        case Sequence():
            return f"[{' '.join(_inner(item) for item in value)}]"
        case _:
            return str(value)


def _inner(value: Any) -> str:
    return "<nil>" if value is None else go_print(value)


def _go_float(value: float) -> str:
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    mantissa, exponent, digits = text.partition("e")
    if not exponent:
        return text
    return f"{mantissa}e{digits[0] if digits[0] in '+-' else '+'}{digits.lstrip('+-').zfill(2)}"


# --- functions -----------------------------------------------------------------------------------------------------


def go_json(value: Any) -> str:
    """Compact JSON as Go's encoder writes it without HTML escaping; maps by sorted key, structs in their order."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item() if callable(item) else item) for key, item in value.items()}
    if value is _MISSING:
        return None
    return value


def _index(collection: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(collection, Mapping):
            collection = collection.get(key, "" if _string_map(collection) else None)
        elif collection is None or collection is _MISSING:
            raise TemplateError("error calling index: index of untyped nil")
        elif isinstance(key, bool) or not isinstance(key, int):
            raise TemplateError(f"error calling index: cannot index slice/array with type {_go_type(key)}")
        elif not 0 <= key < len(collection):
            raise TemplateError(f"error calling index: index out of range: {key}")
        else:
            collection = collection[key] if not isinstance(collection, str) else ord(collection[key])
    return collection


def _string_map(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(item, str) for item in value.values())


def _slice(collection: Any, *indexes: int) -> Any:
    low, high = (indexes[0] if indexes else 0), (indexes[1] if len(indexes) > 1 else len(collection))
    if not 0 <= low <= high <= len(collection):
        raise TemplateError(f"error calling slice: invalid slice index: {low} > {high}")
    return collection[low:high]


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("error calling eq: missing argument for comparison")
    return any(_comparable(first) == _comparable(other) for other in others)


def _comparable(value: Any) -> Any:
    # A bool equals no number in Go.
    return ("bool", value) if isinstance(value, bool) else None if value is _MISSING else value


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def call(left: Any, right: Any) -> bool:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if not (numbers or (isinstance(left, str) and isinstance(right, str))):
            raise TemplateError("error calling lt: incompatible types for comparison")
        return compare(left, right)

    return call


def _length(value: Any) -> int:
    if value is None or value is _MISSING:
        raise TemplateError("error calling len: reflect: call of reflect.Value.Type on zero Value")
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, bool | int | float):
        raise TemplateError(f"error calling len: len of type {_go_type(value)}")
    return len(value)


def _sprint(*values: Any) -> str:
    """fmt.Sprint: a space between operands where neither is a string."""
    out = ""
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += _inner(value)
    return out


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?:\.(?P<precision>\d+))?(?P<verb>[a-zA-Z%])")


def _sprintf(form: str, *values: Any) -> str:
    queue = list(values)

    def one(match: re.Match[str]) -> str:
        verb = match["verb"]
        if verb == "%":
            return "%"
        if not queue:
            return f"%!{verb}(MISSING)"
        value = queue.pop(0)
        width, precision = match["width"], match["precision"]
        flags = match["flags"]
        match verb:
            case "v" | "s":
                text = _inner(value)
                if precision and verb == "s":
                    text = text[: int(precision)]
            case "q":
                text = json.dumps(str(value), ensure_ascii=False)
            case "t" if isinstance(value, bool):
                text = go_print(value)
            case "T":
                text = _go_type(value)
            case "d" if isinstance(value, int) and not isinstance(value, bool):
                text = f"{value:{'+' if '+' in flags else ''}d}"
            case "x" | "X" if isinstance(value, str):
                text = value.encode().hex()
                text = text.upper() if verb == "X" else text
            case "x" | "X" | "o" | "b" | "c" if isinstance(value, int) and not isinstance(value, bool):
                text = f"{value:{verb}}"
            case "f" | "F" | "e" | "g" if isinstance(value, int | float) and not isinstance(value, bool):
                text = f"{value:.{precision or 6}{verb}}" if verb != "g" or precision else _go_float(float(value))
            case _:
                text = f"%!{verb}({_go_type(value)}={go_print(value)})"
        if not width:
            return text
        if "-" in flags:
            return text.ljust(int(width))
        return text.zfill(int(width)) if "0" in flags and verb not in "svq" else text.rjust(int(width))

    text = _VERB.sub(one, form)
    if queue:
        text += f"%!(EXTRA {', '.join(f'{_go_type(value)}={go_print(value)}' for value in queue)})"
    return text


def _pad(text: str, before: int, after: int) -> str:
    return text if not text else " " * before + text + " " * after


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _html(*values: Any) -> str:
    text = _sprint(*values)
    for raw, escaped in (("&", "&amp;"), ("'", "&#39;"), ('"', "&#34;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(raw, escaped)
    return text


def _query(*values: Any) -> str:
    from urllib.parse import quote_plus

    return quote_plus(_sprint(*values), safe="~")


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "and": lambda *values: values[-1],
    "or": lambda *values: values[-1],
    "not": lambda value: not _truth(value),
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _ordered(lambda left, right: left < right),
    "le": _ordered(lambda left, right: left <= right),
    "gt": _ordered(lambda left, right: left > right),
    "ge": _ordered(lambda left, right: left >= right),
    "len": _length,
    "index": _index,
    "slice": _slice,
    "print": _sprint,
    "printf": _sprintf,
    "println": lambda *values: " ".join(_inner(value) for value in values) + "\n",
    "html": _html,
    "js": lambda *values: json.dumps(_sprint(*values))[1:-1].replace("'", "\\'"),
    "urlquery": _query,
    # docker's
    "json": go_json,
    "split": lambda text, separator: text.split(separator) if separator else list(text),
    "join": lambda items, separator: separator.join(_inner(item) for item in items or ()),
    "title": lambda text: re.sub(r"(^|\s)(\S)", lambda match: match[1] + match[2].title(), text),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "pad": _pad,
    "truncate": _truncate,
}


# --- parser --------------------------------------------------------------------------------------------------------


class _Actions:
    """A cursor over the words of one action."""

    def __init__(self, tokens: list[_Token], functions: Mapping[str, Callable[..., Any]]) -> None:
        self.tokens = tokens
        self.functions = functions
        self.at = 0

    def peek(self) -> _Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *texts: str) -> bool:
        token = self.peek()
        if token is not None and token.text in texts and token.kind in ("symbol", "word"):
            self.at += 1
            return True
        return False

    def pipeline(self, what: str = "command") -> _Pipeline:
        declares: list[str] = []
        assigns = False
        start = self.at
        while (token := self.peek()) is not None and token.kind == "variable":
            self.at += 1
            declares.append(token.text)
            if self.take(":="):
                break
            if self.take("="):
                assigns = True
                break
            if self.take(","):
                continue
            declares = []
            break
        else:
            declares = []
        if not declares:
            self.at = start
        commands = [self.command(what)]
        while self.take("|"):
            commands.append(self.command(what))
        return _Pipeline(tuple(commands), tuple(declares), assigns)

    def command(self, what: str) -> _Command:
        operands: list[_Operand] = []
        while (token := self.peek()) is not None and token.text not in ("|", ")"):
            operands.append(self.operand())
        if not operands:
            raise TemplateError(f"template parsing error: template: :1: missing value for {what}")
        if len(operands) > 1 and isinstance(operands[0], _Literal):
            raise TemplateError("template parsing error: template: :1: can't give argument to non-function")
        return _Command(tuple(operands))

    def operand(self) -> _Operand:
        token = self.tokens[self.at]
        self.at += 1
        match token.kind:
            case "string":
                return _Literal(token.text[1:-1] if token.text[0] == "`" else _unquoted(token.text))
            case "char":
                return _Literal(ord(_unquoted(f'"{token.text[1:-1]}"')))
            case "number":
                return _Literal(_number(token.text))
            case "dot":
                return self.path(lambda scope: scope.dot, ".", ())
            case "field":
                return self.path(lambda scope: scope.dot, "", (token.text[1:],))
            case "variable":
                return self.path(lambda scope: scope.look_up(token.text), token.text, ())
            case "word":
                if token.text in ("true", "false", "nil"):
                    return _Literal({"true": True, "false": False, "nil": None}[token.text])
                if token.text not in self.functions:
                    raise TemplateError(f'template parsing error: template: :1: function "{token.text}" not defined')
                return _Call(token.text)
        if token.text == "(":
            inner = self.pipeline()
            if not self.take(")"):
                raise TemplateError("template parsing error: template: :1: unclosed left paren")
            return self.path(inner.evaluate, "(…)", ())
        raise TemplateError(f'template parsing error: template: :1: unexpected "{token.text}" in operand')

    def path(self, start: Callable[[_Scope], Any], text: str, fields: tuple[str, ...]) -> _Path:
        while (token := self.peek()) is not None and token.kind == "field" and not token.spaced:
            self.at += 1
            fields += (token.text[1:],)
        return _Path(start, fields, f"{text}{''.join(f'.{name}' for name in fields)}")

    def end(self) -> None:
        if (token := self.peek()) is not None:
            raise TemplateError(f'template parsing error: template: :1: unexpected "{token.text}" in command')


def _unquoted(text: str) -> str:
    try:
        value: str = json.loads(re.sub(r"\\'", "'", text))
        return value
    except json.JSONDecodeError:
        return text[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")


def _number(text: str) -> int | float:
    try:
        return int(text.replace("_", ""), 0)
    except ValueError:
        return float(text)


class Template:
    """A parsed template. ``strict`` makes a map's missing entry an error, as ``docker inspect`` does.

    Raises :class:`TemplateError` when it cannot be parsed, and :meth:`execute` when it does not fit its value.
    """

    def __init__(
        self, text: str, *, functions: Mapping[str, Callable[..., Any]] | None = None, strict: bool = False
    ) -> None:
        self.functions = {**FUNCTIONS, **(functions or {})}
        self.strict = strict
        self._nodes = self._parse(text)

    def execute(self, value: Any) -> str:
        """The text that the template gives for ``value``."""
        out: list[str] = []
        scope = _Scope(value, [("$", value)], self.functions, self.strict)
        _write(self._nodes, scope, value, out)
        return "".join(out)

    def _parse(self, text: str) -> list[_Node]:
        root: list[_Node] = []
        # One entry an open block: the block, and the list that is being filled.
        stack: list[tuple[_Block | None, list[_Node]]] = [(None, root)]
        for literal, action in _split(text):
            if literal:
                stack[-1][1].append(_Text(literal))
            if action is not None:
                self._action(action, stack)
        if len(stack) > 1:
            raise TemplateError("template parsing error: template: :1: unexpected EOF")
        return root

    def _action(self, action: str, stack: list[tuple[_Block | None, list[_Node]]]) -> None:
        cursor = _Actions(_tokens(action), self.functions)
        first = cursor.peek()
        keyword = first.text if first is not None and first.kind == "word" else ""
        if keyword in ("if", "with", "range"):
            cursor.at += 1
            block = _Block(keyword, cursor.pipeline(keyword))
            stack[-1][1].append(block)
            stack.append((block, block.body))
        elif keyword == "else":
            cursor.at += 1
            block_or_none = stack[-1][0]
            if block_or_none is None or stack[-1][1] is block_or_none.otherwise:
                raise TemplateError("template parsing error: template: :1: unexpected {{else}}")
            stack[-1] = (block_or_none, block_or_none.otherwise)
            if cursor.take("if", "with"):
                # {{else if}} is an if inside the else, ended by the same {{end}}.
                nested = _Block(cursor.tokens[cursor.at - 1].text, cursor.pipeline("if"))
                block_or_none.otherwise.append(nested)
                stack[-1] = (nested, nested.body)
        elif keyword == "end":
            cursor.at += 1
            if len(stack) == 1:
                raise TemplateError("template parsing error: template: :1: unexpected {{end}}")
            stack.pop()
        elif keyword in ("break", "continue"):
            cursor.at += 1
            if not any(block is not None and block.keyword == "range" for block, _ in stack):
                raise TemplateError(f"template parsing error: template: :1: {{{{{keyword}}}}} outside {{{{range}}}}")
            stack[-1][1].append(_Jump(_Break if keyword == "break" else _Continue))
        else:
            stack[-1][1].append(_Print(cursor.pipeline()))
        cursor.end()


def _split(text: str) -> Iterator[tuple[str, str | None]]:
    """Pairs of literal text and the action after it, white space trimmed where ``{{-`` and ``-}}`` say so."""
    position, trim = 0, False
    while True:
        opening = _ACTION.search(text, position)
        literal = text[position : opening.start() if opening else None]
        if trim:
            literal = literal.lstrip(" \t\r\n")
        if opening is None:
            yield literal, None
            return
        if opening[1]:
            literal = literal.rstrip(" \t\r\n")
        comment = re.compile(r"/\*.*?\*/(\s-)?\}\}", re.DOTALL).match(text, opening.end())
        if comment:
            yield literal, None
            position, trim = comment.end(), bool(comment[1])
            continue
        closing = _UNTIL.match(text, opening.end())
        if closing is None:
            raise TemplateError("template parsing error: template: :1: unclosed action")
        inner = text[opening.end() : closing.end() - 2]
        trim = bool(closing[1])
        yield literal, inner[:-1] if trim else inner
        position = closing.end()
