"""How a ``seacan`` command is made: docker's flag grammar and exit statuses on click's commands, loaded when used.

A command is a function ``(client, arguments, **options)``; its flags are declared with :func:`flag`:

    @command("rename", "CONTAINER NEW_NAME", exactly=2, complete="container")
    def rename(client: Client, arguments: list[str]) -> None:
        \"\"\"Rename a container.\"\"\"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from seacan.cli import flags as go
from seacan.cli.client import APIError, Client
from seacan.cli.flags import Flag, FlagError
from seacan.errors import InvalidParameter, SeacanError

Converter = Callable[[str], Any]

KINDS: Mapping[str, tuple[Converter, str]] = {
    "string": (str, "string"),
    "int": (go.parse_integer, "int"),
    "float": (float, "decimal"),
    "bytes": (go.parse_bytes, "bytes"),
    "duration": (go.parse_duration, "duration"),
    "bool": (go.parse_bool, ""),
}


class Exit(Exception):
    """End the command with this status; what there was to say has been said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class UsageError(InvalidParameter):
    """The positional arguments are wrong (exit 1, as docker has it)."""


class _Option(click.Option):
    """One flag. click shows it and completes it; :mod:`seacan.cli.flags` parses it."""

    def __init__(
        self,
        name: str,
        short: str,
        kind: str | Converter,
        help: str,
        default: Any,
        many: bool,
        metavar: str,
        choices: Sequence[str],
        hidden: bool,
        bare: str | None,
    ) -> None:
        names = [f"--{name}", *([f"-{short}"] if short else [])]
        self.boolean = kind == "bool"
        super().__init__(
            [*names, name.replace("-", "_")], is_flag=self.boolean, help=help, hidden=hidden, multiple=many
        )
        self.converter, shown = KINDS[kind] if isinstance(kind, str) else (kind, "string")
        self.many = many
        self.initial = default if default is not None else ([] if many else False if self.boolean else None)
        self.shown = metavar or ("list" if many else shown)
        self.choices = choices
        self.flag = Flag(name, short, boolean=self.boolean, bare=bare)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if self.hidden:
            return None
        short = f"-{self.flag.short}, " if self.flag.short else "    "
        return f"{short}--{self.flag.name} {self.shown}".rstrip(), self.help or ""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]


def flag(
    name: str,
    help: str,
    *,
    short: str = "",
    kind: str | Converter = "string",
    default: Any = None,
    many: bool = False,
    metavar: str = "",
    choices: Sequence[str] = (),
    hidden: bool = False,
    bare: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a flag of the command below. Without a default a string is None, a list [], a boolean False."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        option = _Option(name, short, kind, help, default, many, metavar, choices, hidden, bare)
        function.__dict__.setdefault("_options", []).append(option)
        return function

    return declare


def switch(name: str, help: str, *, short: str = "", **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a boolean flag."""
    return flag(name, help, short=short, kind="bool", **more)


class Command(click.Command):
    """A verb. ``synopsis`` names its positional arguments, of which it takes ``least`` to ``most`` (None: any)."""

    def __init__(
        self,
        name: str,
        synopsis: str,
        callback: Callable[..., Any],
        *,
        least: int,
        most: int | None,
        interspersed: bool,
        complete: str,
        failure_status: int,
    ) -> None:
        options = list(reversed(getattr(callback, "_options", [])))
        super().__init__(name, params=options, callback=callback, help=callback.__doc__, add_help_option=False)
        self.synopsis = synopsis
        self.least, self.most = least, most
        self.interspersed = interspersed
        self.complete = complete
        self.failure_status = failure_status

    @property
    def options(self) -> list[_Option]:
        return [param for param in self.params if isinstance(param, _Option)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if (session := ctx.find_object(Session)) is not None:
            session.current = ctx
        known = [option.flag for option in self.options]
        ctx.params.update({option.name: _copy(option.initial) for option in self.options})
        try:
            found, positional = go.parse(args, [*known, Flag("help", boolean=True)], interspersed=self.interspersed)
        except FlagError:
            if ctx.resilient_parsing:
                return []
            raise
        by_flag = {option.flag.name: option for option in self.options}
        given = set()
        for item, text in found:
            if item.name == "help":
                if not ctx.resilient_parsing:
                    click.echo(self.get_help(ctx))
                    ctx.exit()
                continue
            option = by_flag[item.name]
            try:
                value = option.converter(text)
            except InvalidParameter as error:
                raise go.invalid(item, text, error.message) from None
            except ValueError:
                raise go.invalid(item, text, "invalid syntax") from None
            assert option.name is not None
            if option.many:
                if option.name not in given:
                    ctx.params[option.name] = []
                ctx.params[option.name].append(value)
            else:
                ctx.params[option.name] = value
            given.add(option.name)
        ctx.meta["seacan.given"] = given
        if not ctx.resilient_parsing:
            self._check_count(ctx, len(positional))
        ctx.args = positional
        return positional

    def _check_count(self, ctx: click.Context, count: int) -> None:
        def plural(number: int) -> str:
            return f"{number} argument{'s' if number != 1 else ''}"

        path = f"'{ctx.command_path}'"
        if self.most == 0 and count:
            raise UsageError(f"{path} accepts no arguments")
        if self.least == self.most and count != self.least:
            raise UsageError(f"{path} requires {plural(self.least)}")
        if count < self.least:
            raise UsageError(f"{path} requires at least {plural(self.least)}")
        if self.most is not None and count > self.most:
            raise UsageError(f"{path} requires at most {plural(self.most)}")

    def invoke(self, ctx: click.Context) -> Any:
        assert self.callback is not None
        session = ctx.find_object(Session)
        assert session is not None
        return self.callback(session.client, ctx.args, **ctx.params)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Usage:  {usage(ctx)}\n")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-") or not self.complete:
            return super().shell_complete(ctx, incomplete)
        session = ctx.find_object(Session)
        names = object_names(session.client if session else Client(), self.complete)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def usage(ctx: click.Context) -> str:
    """``seacan run [OPTIONS] IMAGE …``"""
    command = ctx.command
    if isinstance(command, Command):
        options = " [OPTIONS]" if command.options else ""
        return f"{ctx.command_path}{options} {command.synopsis}".rstrip()
    return f"{ctx.command_path} COMMAND"


def command(
    name: str,
    synopsis: str = "",
    *,
    least: int = 0,
    most: int | None = None,
    exactly: int | None = None,
    interspersed: bool = True,
    complete: str = "",
    failure_status: int = 1,
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of the function below. ``failure_status`` is the exit status when the daemon refuses."""
    if exactly is not None:
        least = most = exactly

    def make(function: Callable[..., Any]) -> Command:
        return Command(
            name,
            synopsis,
            function,
            least=least,
            most=most,
            interspersed=interspersed,
            complete=complete,
            failure_status=failure_status,
        )

    return make


def given(ctx: click.Context | None = None) -> set[str]:
    """The names of the options that the command line gave."""
    names: set[str] = (ctx or click.get_current_context()).meta["seacan.given"]
    return names


class Group(click.Group):
    """Commands that are imported when they are used: ``entries`` maps a name to ("module:attribute", short help)."""

    def __init__(self, name: str, help: str, entries: Mapping[str, tuple[str, str]], **more: Any) -> None:
        super().__init__(name, help=help, add_help_option=more.pop("add_help_option", True), **more)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        import importlib

        module, _, attribute = entry[0].partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, rest = args[0], args[1:]
        found = self.get_command(ctx, name)
        if found is None and not ctx.resilient_parsing:
            if name.startswith("-"):
                raise FlagError(f"unknown flag: {name}")
            raise FlagError(f"unknown command: {ctx.command_path} {name}")
        return name if found else None, found, rest

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Usage:  {ctx.command_path} {'[OPTIONS] ' if not ctx.parent else ''}COMMAND\n")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in self.entries.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [
            CompletionItem(name, help=short) for name, (_, short) in self.entries.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


class Session:
    """What the global options say: which daemon, how."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.current: click.Context | None = None
        """The command that is being run, for the words of an error."""
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(**self._options)
        return self._client


def object_names(client: Client, noun: str) -> list[str]:
    """Names of the daemon's objects, for completion; none when it does not answer."""
    try:
        match noun:
            case "container" | "running":
                listed = client.get("/containers/json", all=noun == "container")
                return [name.lstrip("/") for item in listed for name in item["Names"]]
            case "image":
                return [tag for item in client.get("/images/json") for tag in item.get("RepoTags") or []]
            case "network":
                return [item["Name"] for item in client.get("/networks")]
            case "volume":
                return [item["Name"] for item in client.get("/volumes").get("Volumes") or []]
    except SeacanError:
        pass
    return []


# --- the outermost frame -------------------------------------------------------------------------------------------


def run_root(root: click.Group, arguments: Sequence[str]) -> NoReturn:
    """Run the command line and end the process with docker's exit status."""
    if instruction := os.environ.get("_SEACAN_COMPLETE"):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(root, {}, "seacan", "_SEACAN_COMPLETE", instruction))
    sys.exit(_status(root, list(arguments)))


def _status(root: click.Group, arguments: list[str]) -> int:
    ctx: click.Context | None = None
    try:
        with root.make_context("seacan", arguments) as ctx:
            root.invoke(ctx)
        sys.stdout.flush()
        return 0
    except Exit as end:
        return end.status
    except click.exceptions.Exit as end:
        return end.exit_code
    except (FlagError, UsageError) as error:
        inner = _innermost(ctx)
        _complain(error.message)
        if inner is not None:
            _complain(f"\nUsage:  {usage(inner)}\n\nRun '{inner.command_path} --help' for more information")
        return 125 if isinstance(error, FlagError) else 1
    except click.ClickException as error:
        error.show()
        return 125
    except APIError as error:
        inner = _innermost(ctx)
        _complain(f"Error response from daemon: {error.message}")
        return getattr(inner.command, "failure_status", 1) if inner is not None else 1
    except SeacanError as error:
        inner = _innermost(ctx)
        _complain(error.message)
        return getattr(inner.command, "failure_status", 1) if inner is not None else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (head, grep -q): nothing is left to say, not even by the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _innermost(ctx: click.Context | None) -> click.Context | None:
    session = ctx.find_object(Session) if ctx is not None else None
    return session.current if session is not None and session.current is not None else ctx


def _complain(message: str) -> None:
    print(message, file=sys.stderr)


def warn(message: str) -> None:
    """A line on standard error."""
    _complain(message)


def each(arguments: Sequence[str], act: Callable[[str], str | None]) -> None:
    """Do something for every argument: print what it gives, report what fails, and fail at the end if any did."""
    failed = False
    for argument in arguments:
        try:
            if text := act(argument):
                print(text, flush=True)
        except APIError as error:
            _complain(f"Error response from daemon: {error.message}")
            failed = True
    if failed:
        raise Exit(1)


def filters(items: Sequence[str]) -> dict[str, list[str]] | None:
    """``--filter key=value`` items as the API takes them."""
    found: dict[str, list[str]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise InvalidParameter("invalid filter: bad format of filter (expected name=value)")
        found.setdefault(key.strip().lower(), []).append(value.strip())
    return found or None
