import json

import pytest

from seacan.engine.profiles import CAPABILITIES, capabilities, seccomp
from seacan.errors import InvalidParameter
from seacan.linux.capabilities import NAMES


def named(bounding: set[str]) -> set[str]:
    return {name for rule in seccomp.default(bounding).syscalls if not rule.args for name in rule.names}


@pytest.fixture
def everything_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "available", lambda: NAMES)


def test_no_system_call_is_listed_twice() -> None:
    names = [name for group in seccomp.ALLOWED.values() for name in group.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["mount", "umount2", "setns", "bpf", "ptrace", "reboot", "init_module", "iopl"])
def test_what_needs_a_capability_is_not_allowed_to_all(name: str) -> None:
    assert name not in {name for group in seccomp.ALLOWED.values() for name in group.split()}


@pytest.mark.parametrize(
    ("capability", "name"),
    [("CAP_SYS_ADMIN", "mount"), ("CAP_BPF", "bpf"), ("CAP_SYS_BOOT", "reboot"), ("CAP_SYS_TIME", "clock_settime")],
)
def test_a_capability_opens_its_system_calls(capability: str, name: str) -> None:
    assert name not in named(set())
    assert name in named({capability})


def test_without_sys_admin_clone_makes_no_namespaces() -> None:
    (rule,) = [rule for rule in seccomp.default(CAPABILITIES).syscalls if rule.names == ["clone"]]
    assert rule.args[0].value & 0x10000000  # CLONE_NEWUSER
    assert not [r for r in seccomp.default({"CAP_SYS_ADMIN"}).syscalls if r.names == ["clone"] and r.args]


def test_profiles_of_the_same_set_are_the_same_object() -> None:
    assert seccomp.default(CAPABILITIES) is seccomp.default([*list(CAPABILITIES), "CAP_NET_ADMIN"])


def test_dockers_json_is_understood() -> None:
    text = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": seccomp._machine()[1], "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"name": "write", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_KILL"]}},
            {"names": ["open"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_KILL"]}},
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["vax"]}},
            {"names": ["stat"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
        ],
    }
    found = seccomp.parse(json.dumps(text), ["CAP_KILL"])
    assert found is not None
    assert [rule.names for rule in found.syscalls] == [["read"], ["write"]]
    assert found.architectures == [seccomp._machine()[1], "SCMP_ARCH_X86"]


def test_an_empty_profile_means_no_filter() -> None:
    assert seccomp.parse("{}", []) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Decoding seccomp profile failed"),
        ("[" * 100000, "Decoding seccomp profile failed"),
        ('{"defaultAction":"x","architectures":["a"],"archMap":[{"architecture":"b"}]}', "use either 'architectures'"),
        ('{"syscalls":[{"name":"a","names":["b"],"action":"x"}]}', "use either 'name'"),
        ('{"syscalls":[{"names":["b"],"includes":{"minKernel":"x"}}]}', "invalid kernel version"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        seccomp.parse(text, [])


@pytest.mark.usefixtures("everything_available")
class TestCapabilities:
    def test_the_default_set_is_dockers(self) -> None:
        assert capabilities.resolve([], []) == list(CAPABILITIES)

    def test_names_need_no_prefix_and_no_case(self) -> None:
        assert "CAP_NET_ADMIN" in capabilities.resolve(["net_admin"], [])
        assert "CAP_CHOWN" not in capabilities.resolve([], ["cap_chown"])

    def test_all_but_some(self) -> None:
        found = capabilities.resolve(["ALL"], ["NET_RAW"])
        assert set(NAMES) - set(found) == {"CAP_NET_RAW"}

    def test_none_but_some(self) -> None:
        assert capabilities.resolve(["KILL"], ["ALL"]) == ["CAP_KILL"]

    def test_privileged_gets_all_whatever_is_dropped(self) -> None:
        assert capabilities.resolve([], ["ALL"], privileged=True) == list(NAMES)

    def test_an_unknown_one_is_refused_in_dockerds_words(self) -> None:
        with pytest.raises(InvalidParameter, match='unknown capability: "CAP_FLY"'):
            capabilities.resolve(["fly"], [])


def test_what_the_engine_lacks_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "available", lambda: ("CAP_KILL", "CAP_CHOWN"))
    with pytest.raises(InvalidParameter, match="not available in the current environment"):
        capabilities.resolve(["NET_RAW"], [])
    assert capabilities.resolve([], []) == ["CAP_CHOWN", "CAP_KILL"]
