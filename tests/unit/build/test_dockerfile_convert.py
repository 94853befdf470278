"""Dockerfiles as graphs: stages, arguments, configuration, history, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from seacan.build.dockerfile.convert import Converted, NamedContext, Options, ResolvedImage, convert, targets
from seacan.build.dockerfile.parser import DockerfileError
from seacan.build.graph import Exec, Files, ImageSource, LocalSource, Merge, Vertex, walk
from seacan.errors import InvalidParameter, NotFound
from seacan.images.config import ImageConfig, ImageDefaults
from seacan.images.manifest import Platform

BASE = ImageConfig(
    os="linux", architecture="amd64", config=ImageDefaults(env=["PATH=/bin", "BASE=1"], on_build=None, cmd=["sh"])
)


class Images:
    """A resolver that knows a few images and remembers what it was asked."""

    def __init__(self, images: Mapping[str, ImageConfig] | None = None) -> None:
        self.images = {"busybox": BASE, **(images or {})}
        self.asked: list[str] = []

    async def image(self, reference: str, platform: Platform) -> ResolvedImage:
        self.asked.append(reference)
        if reference not in self.images:
            raise NotFound(f"No such image: {reference}")
        return ResolvedImage(self.images[reference], f"sha256:{reference:0<64}")

    async def named_context(self, name: str, platform: Platform) -> NamedContext | None:
        return None


async def translate(text: str, images: Images | None = None, **options: object) -> Converted:
    settings = Options(build_platform=Platform("linux", "amd64"), **options)  # type: ignore[arg-type]
    return await convert(text.encode(), settings, images or Images())


def runs(vertex: Vertex) -> list[tuple[str, ...]]:
    return [each.operation.arguments for each in walk([vertex]) if isinstance(each.operation, Exec)]


async def test_a_stage_nobody_needs_is_not_in_the_graph() -> None:
    images = Images()
    done = await translate(
        "FROM nosuch AS unused\nRUN unused\nFROM busybox AS needed\nRUN needed\n"
        "FROM busybox\nCOPY --from=needed /a /b\nRUN last\n",
        images,
    )
    assert sorted(command[-1] for command in runs(done.vertex)) == ["last", "needed"]
    assert images.asked == ["busybox"]


async def test_variables_follow_their_scopes() -> None:
    done = await translate(
        "ARG V=1\nARG W=${V}2\nFROM busybox\nARG V\nARG X=$V-$W\nENV Y=${V:-none} Z=$W\nRUN echo\n",
        build_args={"V": "7"},
    )
    environment = done.vertex.operation.environment  # type: ignore[union-attr]
    assert "V=7" in environment
    assert "X=7-" in environment
    assert done.config.defaults.env == ["PATH=/bin", "BASE=1", "Y=7", "Z="]


async def test_predefined_platform_arguments_are_there_when_declared() -> None:
    done = await translate("FROM busybox\nARG TARGETARCH\nRUN echo\n", platform=Platform("linux", "amd64"))
    assert "TARGETARCH=amd64" in done.vertex.operation.environment  # type: ignore[union-attr]


async def test_proxies_reach_programs_but_neither_key_nor_image() -> None:
    done = await translate("FROM busybox\nRUN echo\n", build_args={"http_proxy": "http://p"})
    operation = done.vertex.operation
    assert isinstance(operation, Exec)
    assert "HTTP_PROXY=http://p" in operation.proxy and "http_proxy=http://p" in operation.proxy
    assert not any("proxy" in each.lower() for each in operation.environment)
    assert done.unused_args == ()


async def test_arguments_nobody_declares_are_told() -> None:
    assert (await translate("FROM busybox\n", build_args={"NOPE": "1"})).unused_args == ("NOPE",)


async def test_configuration_and_history() -> None:
    done = await translate(
        "FROM busybox\nLABEL a=b\nEXPOSE 53/UDP 80-81\nUSER me\nWORKDIR /x\nWORKDIR y\nVOLUME /v\n"
        'SHELL ["/bin/ash", "-c"]\nCMD echo "hi"\nENTRYPOINT ["e"]\nHEALTHCHECK --retries=2 CMD ok\nSTOPSIGNAL INT\n'
    )
    defaults = done.config.defaults
    assert defaults.labels == {"a": "b"}
    assert sorted(defaults.exposed_ports or ()) == ["53/udp", "80/tcp", "81/tcp"]
    assert (defaults.user, defaults.working_dir, defaults.stop_signal) == ("me", "/x/y", "INT")
    assert defaults.cmd == ["/bin/ash", "-c", 'echo "hi"']
    assert defaults.entrypoint == ["e"]
    assert [(line.created_by, line.empty_layer) for line in done.config.history] == [
        ("LABEL a=b", True),
        ("EXPOSE [53/udp 80/tcp 81/tcp]", True),
        ("USER me", True),
        ("WORKDIR /x", False),
        ("WORKDIR /x/y", False),
        ("VOLUME [/v]", True),
        ("SHELL [/bin/ash -c]", True),
        ('CMD ["/bin/ash" "-c" "echo \\"hi\\""]', True),
        ('ENTRYPOINT ["e"]', True),
        ('HEALTHCHECK &{["CMD-SHELL" "ok"] "0s" "0s" "0s" "0s" \'\\x02\'}', True),
        ("STOPSIGNAL INT", True),
    ]


async def test_an_entrypoint_forgets_the_base_s_command() -> None:
    assert (await translate('FROM busybox\nENTRYPOINT ["e"]\n')).config.defaults.cmd is None
    assert (await translate('FROM busybox\nCMD ["c"]\nENTRYPOINT ["e"]\n')).config.defaults.cmd == ["c"]


async def test_onbuild_triggers_of_the_base_run_first_and_are_not_inherited() -> None:
    images = Images({"trigger": ImageConfig(os="linux", config=ImageDefaults(on_build=["RUN triggered", "ENV A=b"]))})
    done = await translate("FROM trigger\nRUN $A own\n", images)
    assert [command[-1] for command in runs(done.vertex)] == ["triggered", "$A own"]
    assert done.config.defaults.on_build is None
    assert "A=b" in (done.config.defaults.env or [])


async def test_onbuild_of_a_stage_runs_in_the_stage_built_on_it() -> None:
    done = await translate("FROM busybox AS a\nONBUILD RUN triggered\nFROM a\nRUN own\n")
    assert [command[-1] for command in runs(done.vertex)] == ["triggered", "own"]


async def test_stages_share_their_base() -> None:
    done = await translate("FROM busybox AS a\nRUN 1\nFROM a AS b\nRUN 2\nFROM a\nCOPY --from=b / /\n")
    images = [each for each in walk([done.vertex]) if isinstance(each.operation, ImageSource)]
    assert len(images) == 1


async def test_copy_link_stands_on_nothing_and_is_laid_on_top() -> None:
    done = await translate("FROM busybox\nRUN a\nCOPY --link x /x\n")
    assert isinstance(done.vertex.operation, Merge)
    _, linked = done.vertex.inputs
    assert isinstance(linked.operation, Files)
    assert linked.operation.detached
    assert not any(isinstance(each.operation, ImageSource) for each in walk([linked]))


async def test_only_what_is_copied_of_the_context_is_asked_for() -> None:
    done = await translate("FROM busybox\nCOPY a b/c /d/\n")
    context = next(each.operation for each in walk([done.vertex]) if isinstance(each.operation, LocalSource))
    assert context.paths == ("/a", "/b/c")
    done = await translate("FROM busybox\nCOPY . /d/\n")
    context = next(each.operation for each in walk([done.vertex]) if isinstance(each.operation, LocalSource))
    assert context.paths == ("/",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM busybox AS a\nCOPY --from=b / /\nFROM busybox AS b\nCOPY --from=a / /\n", "circular dependency"),
        ("FROM busybox AS a\nCOPY --from=a / /\n", "circular dependency detected on stage: a"),
        ("FROM scratch AS z\nFROM busybox\nRUN --mount=from=z,target=/ true\n", "invalid mount target"),
        ("FROM busybox\nCOPY --from=7 / /\n", "invalid stage index 7"),
        ("ARG X\nFROM $X\n", "base name ($X) should not be blank"),
        ("FROM --platform=$NOPE busybox\n", "empty platform value from expression $NOPE"),
        ("FROM busybox\nCOPY --chmod=999 a /\n", "invalid chmod parameter"),
        ("FROM busybox\nADD --checksum=sha256:1 a /\n", "checksum requires HTTP(S) or Git sources"),
        ("FROM busybox\nCOPY https://example.org/a /\n", "source can't be a URL for COPY"),
        ("FROM busybox\nCOPY git@example.org:a/b.git /\n", "source can't be a git ref for COPY"),
        ("FROM busybox\nSTOPSIGNAL NOPE\n", "invalid signal: NOPE"),
        ("FROM busybox\nEXPOSE 99999\n", "invalid containerPort: 99999"),
        ("FROM busybox\nEXPOSE 80/icmp\n", "invalid proto: icmp"),
        ("FROM busybox\nRUN --device=vendor.com/gpu=all true\n", "RUN --device is not supported"),
        ("FROM busybox\nENV A=${B:?needed}\n", "B: needed"),
    ],
)
async def test_refuses(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        await translate(text)
    assert message in str(caught.value)
    assert caught.value.location is not None


async def test_an_unknown_target_suggests_a_stage() -> None:
    with pytest.raises(InvalidParameter, match=r'target stage "biuld" could not be found \(did you mean build\?\)'):
        await translate("FROM busybox AS build\nFROM busybox AS other\n", target="biuld")


async def test_a_missing_base_names_itself() -> None:
    with pytest.raises(NotFound, match="bussybox: No such image"):
        await translate("FROM bussybox\n")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('FROM busybox\ncmd ["a"]\nRUN b\n', "ConsistentInstructionCasing"),
        ("FROM busybox AS a\nFROM busybox AS a\n", "DuplicateStageName"),
        ("FROM busybox AS scratch\n", "ReservedStageName"),
        ("FROM busybox\nCMD a\n", "JSONArgsRecommended"),
        ("FROM busybox\nMAINTAINER me\n", "MaintainerDeprecated"),
        ("ARG TAG=1\nFROM busybox${TGA}\n", "UndefinedArgInFrom"),
        ("FROM busybox\nWORKDIR here\n", "WorkdirRelativePath"),
        ("FROM busybox\nENV A=$BSAE\n", "UndefinedVar"),
        ('FROM busybox\nCMD ["a"]\nCMD ["b"]\n', "MultipleInstructionsDisallowed"),
        ("FROM busybox\nENV A b\n", "LegacyKeyValueFormat"),
        ("FROM --platform=$TARGETPLATFORM busybox\n", "RedundantTargetPlatform"),
        ("FROM --platform=linux/amd64 busybox\n", "FromPlatformFlagConstDisallowed"),
        ("FROM busybox\nARG API_TOKEN\n", "SecretsUsedInArgOrEnv"),
        ("ARG X\nFROM ${X:-busybox}${X:+:}\n", ""),
        ("ARG X\nFROM ${X:-BUSYBOX}\nFROM busybox\n", "InvalidDefaultArgInFrom"),
        ("FROM busybox\nEXPOSE 80/TCP\n", "ExposeProtoCasing"),
        ("FROM busybox\nEXPOSE 80:80\n", "ExposeInvalidFormat"),
        ("FROM busybox\nRUN a \\\n\n b\n", "NoEmptyContinuation"),
    ],
)
async def test_checks_find(text: str, rule: str) -> None:
    done = await translate(text)
    found = [finding.rule.name for finding in done.findings]
    assert rule in found if rule else not found


async def test_a_copied_file_that_is_ignored_is_found() -> None:
    done = await translate("FROM busybox\nCOPY a.log /\n", ignore=("*.log",))
    assert [finding.message for finding in done.findings] == [
        'Attempting to Copy file "a.log" that is excluded by .dockerignore'
    ]


async def test_checks_can_be_errors() -> None:
    with pytest.raises(DockerfileError, match="lint violation found for rules: MaintainerDeprecated"):
        await translate("# check=error=true\nFROM busybox\nMAINTAINER me\n")


async def test_the_epoch_is_every_line_s_time() -> None:
    done = await translate("FROM busybox\nENV A=b\nRUN c\n", build_args={"SOURCE_DATE_EPOCH": "86400"})
    assert {line.created for line in done.config.history} == {"1970-01-02T00:00:00Z"}
    assert done.vertex.epoch == 86400


async def test_a_malformed_epoch_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="invalid SOURCE_DATE_EPOCH: soon"):
        await translate("FROM busybox\n", build_args={"SOURCE_DATE_EPOCH": "soon"})


def test_targets_are_listed_with_their_descriptions() -> None:
    found = targets(b"# base the first\nFROM x AS base\n# main what is shipped\nFROM base AS main\n")
    assert [(target.name, target.description, target.default) for target in found] == [
        ("base", "the first", False),
        ("main", "what is shipped", True),
    ]
