"""Hooks: when, where and with what they run."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from seacan.cgroups import open as open_cgroup
from seacan.errors import RuntimeFailed
from seacan.runtime import spec
from tests.bundles import Bundles, wait


def noting(path: Path | str, name: str) -> spec.Hook:
    """A hook that notes its name, its pid namespace and the state it is given."""
    script = f"(echo {name}; readlink /proc/self/ns/mnt; cat; echo) >> {path}"
    return spec.Hook("/bin/sh", ["sh", "-c", script], ["PATH=/bin:/usr/bin"], 20)


def notes(path: Path) -> list[tuple[str, str, spec.State]]:
    lines = path.read_text().splitlines()
    return [
        (name, namespace, msgspec.json.decode(state, type=spec.State))
        for name, namespace, state in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    ]


def test_every_hook_runs_in_its_order_and_namespace_with_the_state(bundles: Bundles) -> None:
    log = bundles.folder / "log"
    root = bundles.overlay()
    configuration = bundles.spec(["sleep", "1000"])
    configuration.annotations = {"a": "b"}
    configuration.hooks = spec.Hooks(
        prestart=[noting(log, "prestart")],
        create_runtime=[noting(log, "createRuntime"), noting(log, "createRuntime2")],
        create_container=[noting(log, "createContainer")],
        start_container=[noting("/log", "startContainer")],
        poststart=[noting(log, "poststart")],
        poststop=[noting(log, "poststop")],
    )
    container = bundles.create(configuration, rootfs=root)
    inside = os.readlink(f"/proc/{container.pid}/ns/mnt")
    container.start()
    container.kill(9)
    wait(container.pidfd)
    container.delete()
    host = os.readlink("/proc/self/ns/mnt")
    found = notes(log)
    assert [(name, namespace, state.status) for name, namespace, state in found] == [
        ("prestart", host, "creating"),
        ("createRuntime", host, "creating"),
        ("createRuntime2", host, "creating"),
        ("createContainer", inside, "creating"),
        ("poststart", host, "running"),
        ("poststop", host, "stopped"),
    ]
    assert [state.pid for _, _, state in found] == [container.pid] * 3 + [1, container.pid, 0]
    assert all(state.annotations == {"a": "b"} and state.id == container.id for _, _, state in found)
    assert [(n, ns, s.status) for n, ns, s in notes(Path(f"{root.upper}/log"))] == [
        ("startContainer", inside, "created")
    ]


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (
            spec.Hook("/bin/sh", ["sh", "-c", "echo bad >&2; exit 3"]),
            "error running createRuntime hook #0: exit status 3, stdout: , stderr: bad",
        ),
        (spec.Hook("/bin/sh", ["sh", "-c", "kill -9 $$"]), "error running createRuntime hook #0: signal: SIGKILL"),
        (
            spec.Hook("/bin/sleep", ["sleep", "100"], timeout=1),
            "error running createRuntime hook #0: hook ran past specified timeout of 1s",
        ),
        (spec.Hook("/nosuch"), "error running createRuntime hook #0: fork/exec /nosuch: no such file or directory"),
    ],
)
def test_a_failing_hook_undoes_the_creation(bundles: Bundles, hook: spec.Hook, message: str) -> None:
    configuration = bundles.spec(["true"])
    configuration.hooks = spec.Hooks(create_runtime=[hook])
    with pytest.raises(RuntimeFailed) as failure:
        bundles.create(configuration)
    assert str(failure.value).startswith(f"unable to start container process: {message}")
    assert configuration.linux is not None
    assert not open_cgroup(configuration.linux.cgroups_path).exists
    assert list(bundles.root.iterdir()) == []


def test_a_failing_hook_of_the_container_undoes_the_creation(bundles: Bundles) -> None:
    configuration = bundles.spec(["true"])
    configuration.hooks = spec.Hooks(create_container=[spec.Hook("/bin/sh", ["sh", "-c", "exit 4"])])
    with pytest.raises(RuntimeFailed, match="error running createContainer hook #0: exit status 4"):
        bundles.create(configuration)


def test_a_failing_start_hook_keeps_the_program_from_running(bundles: Bundles) -> None:
    root = bundles.overlay()
    configuration = bundles.spec(["touch", "/ran"])
    configuration.hooks = spec.Hooks(start_container=[spec.Hook("/bin/false")])
    container = bundles.create(configuration, rootfs=root)
    with pytest.raises(RuntimeFailed, match="error running startContainer hook #0: exit status 1"):
        container.start()
    wait(container.pidfd)
    assert not os.path.exists(f"{root.upper}/ran")


def test_a_hook_that_does_not_read_the_state_is_fine(bundles: Bundles) -> None:
    configuration = bundles.spec(["true"])
    configuration.annotations = {"large": "x" * 200_000}
    configuration.hooks = spec.Hooks(prestart=[spec.Hook("/bin/true")])
    assert bundles.run(configuration) == (0, "")
