"""The ``seacan`` program: what it prints and how it exits when there is nothing to talk to."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seacan.cli.command import Command, Group
from seacan.cli.main import COMMANDS, root


def seacan(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seacan.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "DOCKER_HOST": "unix:///nonexistent.sock", **environment},
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ps", "--nope"], 125, "unknown flag: --nope\n\nUsage:  seacan ps [OPTIONS]\n"),
        (["run", "--nope", "busybox"], 125, "unknown flag: --nope"),
        (["run"], 1, "'seacan run' requires at least 1 argument\n"),
        (["rename", "a"], 1, "'seacan rename' requires 2 arguments\n"),
        (["ps", "a"], 1, "'seacan ps' accepts no arguments\n"),
        (["nope"], 125, "unknown command: seacan nope"),
        (["image", "nope"], 125, "unknown command: seacan image nope"),
        (["ps"], 1, "Cannot connect to the Docker daemon at unix:///nonexistent.sock"),
        (["run", "busybox"], 125, "seacan: Cannot connect to the Docker daemon"),
        (["ps", "--filter", "x"], 1, "bad format of filter"),
        (["-H", "a", "-H", "b", "ps"], 125, "Please specify only one -H"),
    ],
)
def test_failures_have_dockers_words_and_status(arguments: list[str], status: int, message: str) -> None:
    done = seacan(*arguments)
    assert message in done.stderr
    assert done.returncode == status
    assert done.stdout == ""


def test_help_and_version_need_no_daemon() -> None:
    assert "Manage containers" in seacan("--help").stdout
    assert seacan("run", "--help").stdout.startswith("Usage:  seacan run [OPTIONS] IMAGE [COMMAND] [ARG...]\n")
    assert seacan("--version").stdout.startswith("Seacan version ")
    assert seacan("daemon", "--version").stdout.startswith("seacand version ")
    assert "--default-ulimit" in seacan("daemon", "--help").stdout


def test_every_command_can_be_loaded_and_documents_itself() -> None:
    def check(entries: dict[str, tuple[str, str]], group: str) -> None:
        for name, (place, short) in entries.items():
            module, _, attribute = place.partition(":")
            if module == "seacan.cli.build" and importlib.util.find_spec(module) is None:
                continue
            found = getattr(importlib.import_module(module), attribute)
            if isinstance(found, Group):
                check(dict(found.entries), f"{group} {name}")
            elif isinstance(found, Command):
                assert found.name == name, f"{group} {name}"
                assert (found.help or "").partition("\n")[0] == short, f"{group} {name}"

    check(dict(COMMANDS), "seacan")


def test_no_flag_is_declared_twice() -> None:
    for name, (place, _) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        if importlib.util.find_spec(module) is None:
            continue
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, Command):
            names = [flag for option in found.options for flag in (option.flag.name, option.flag.short) if flag]
            assert len(names) == len(set(names)), name


def test_listing_containers_imports_little() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, seacan.cli.main, seacan.cli.container; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    heavy = {"asyncio", "aiohttp", "msgspec", "ssl", "http.client", "pyroute2", "tarfile", "seacan.engine.engine"}
    assert not loaded & heavy


def test_importing_seacan_loads_no_engine() -> None:
    code = "import sys, seacan; assert 'seacan.library' not in sys.modules; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    pytest.importorskip("click")
    done = seacan("completion", shell, PATH=os.environ["PATH"])
    assert "_SEACAN_COMPLETE" in done.stdout


def test_commands_and_flags_are_completed() -> None:
    def complete(words: str, index: int) -> list[str]:
        done = seacan(_SEACAN_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(index))
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert sorted(complete("seacan im", 1)) == ["image", "images", "import"]
    assert complete("seacan run --memory-s", 2) == ["--memory-swap", "--memory-swappiness"]
    assert "--default-ulimit" in complete("seacan daemon --default-", 2)
    assert complete("seacan network cre", 2) == ["create"]


def test_the_root_group_is_usable_from_outside() -> None:
    assert root.name == "seacan"
    assert Path(sys.modules[type(root).__module__].__file__ or "").name == "main.py"
