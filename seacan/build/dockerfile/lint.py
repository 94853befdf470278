"""Build checks: what is allowed in a Dockerfile and had better not be there.

Rules carry the names, texts and addresses of the current Dockerfile front end, so that ``docker build --check`` and
``# check=skip=…`` mean the same here. Rules are data; who finds a violation calls :meth:`Checks.report`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from seacan.build.dockerfile.parser import DirectiveReader, DockerfileError, Range
from seacan.build.dockerfile.words import go_quote


@dataclass(frozen=True)
class Rule:
    """``text`` makes the message of a violation from what the caller reports."""

    name: str
    description: str
    text: Callable[..., str]
    slug: str = ""
    experimental: bool = False

    @property
    def url(self) -> str:
        return f"https://docs.docker.com/go/dockerfile/rule/{self.slug}/" if self.slug else ""


def _suggesting(text: str, suggestion: str, sign: str = "") -> str:
    return f"{text} (did you mean {sign}{suggestion}?)" if suggestion else text


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "StageNameCasing",
            "Stage names should be lowercase",
            lambda name: f"Stage name '{name}' should be lowercase",
            "stage-name-casing",
        ),
        Rule(
            "FromAsCasing",
            "The 'as' keyword should match the case of the 'from' keyword",
            lambda keyword, as_: f"'{as_}' and '{keyword}' keywords' casing do not match",
            "from-as-casing",
        ),
        Rule(
            "NoEmptyContinuation",
            "Empty continuation lines will become errors in a future release",
            lambda: "Empty continuation line",
            "no-empty-continuation",
        ),
        Rule(
            "ConsistentInstructionCasing",
            "All commands within the Dockerfile should use the same casing (either upper or lower)",
            lambda name, casing: f"Command '{name}' should match the case of the command majority ({casing})",
            "consistent-instruction-casing",
        ),
        Rule(
            "DuplicateStageName",
            "Stage names should be unique",
            lambda name: f"Duplicate stage name {go_quote(name)}, stage names should be unique",
            "duplicate-stage-name",
        ),
        Rule(
            "ReservedStageName",
            "Reserved words should not be used as stage names",
            lambda name: f"Stage name should not use the same name as reserved stage {go_quote(name)}",
            "reserved-stage-name",
        ),
        Rule(
            "JSONArgsRecommended",
            "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
            lambda name: f"JSON arguments recommended for {name} to prevent unintended behavior related to OS signals",
            "json-args-recommended",
        ),
        Rule(
            "MaintainerDeprecated",
            "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
            lambda: "Maintainer instruction is deprecated in favor of using label",
            "maintainer-deprecated",
        ),
        Rule(
            "UndefinedArgInFrom",
            "FROM command must use declared ARGs",
            lambda name, near: _suggesting(f"FROM argument '{name}' is not declared", near),
            "undefined-arg-in-from",
        ),
        Rule(
            "WorkdirRelativePath",
            "Relative workdir without an absolute workdir declared within the build can have unexpected results "
            "if the base image changes",
            lambda path: f"Relative workdir {go_quote(path)} can have unexpected results if the base image changes",
            "workdir-relative-path",
        ),
        Rule(
            "UndefinedVar",
            "Variables should be defined before their use",
            lambda name, near: _suggesting(f"Usage of undefined variable '${name}'", near, "$"),
            "undefined-var",
        ),
        Rule(
            "MultipleInstructionsDisallowed",
            "Multiple instructions of the same type should not be used in the same stage",
            lambda name: (
                f"Multiple {name} instructions should not be used in the same stage because only the last one "
                "will be used"
            ),
            "multiple-instructions-disallowed",
        ),
        Rule(
            "LegacyKeyValueFormat",
            "Legacy key/value format with whitespace separator should not be used",
            lambda name: f'"{name} key=value" should be used instead of legacy "{name} key value" format',
            "legacy-key-value-format",
        ),
        Rule(
            "InvalidBaseImagePlatform",
            "Base image platform does not match expected target platform",
            lambda image, actual, expected: (
                f"Base image {image} was pulled with platform {go_quote(actual)}, expected {go_quote(expected)} "
                "for current build"
            ),
        ),
        Rule(
            "RedundantTargetPlatform",
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
            lambda name: f"Setting platform to predefined {name} in FROM is redundant as this is the default behavior",
            "redundant-target-platform",
        ),
        Rule(
            "SecretsUsedInArgOrEnv",
            "Sensitive data should not be used in the ARG or ENV commands",
            lambda name, key: f"Do not use ARG or ENV instructions for sensitive data ({name} {go_quote(key)})",
            "secrets-used-in-arg-or-env",
        ),
        Rule(
            "InvalidDefaultArgInFrom",
            "Default value for global ARG results in an empty or invalid base image name",
            lambda name: f"Default value for ARG {name} results in empty or invalid base image name",
            "invalid-default-arg-in-from",
        ),
        Rule(
            "FromPlatformFlagConstDisallowed",
            "FROM --platform flag should not use a constant value",
            lambda platform: f"FROM --platform flag should not use constant value {go_quote(platform)}",
            "from-platform-flag-const-disallowed",
        ),
        Rule(
            "CopyIgnoredFile",
            "Attempting to Copy file that is excluded by .dockerignore",
            lambda verb, file: f"Attempting to {verb} file {go_quote(file)} that is excluded by .dockerignore",
            "copy-ignored-file",
        ),
        Rule(
            "InvalidDefinitionDescription",
            "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. "
            "If this is not intended to be a description comment, add an empty line or comment between the "
            "instruction and the comment.",
            lambda name, key: f"Comment for {name} should follow the format: `# {key} <description>`",
            "invalid-definition-description",
            experimental=True,
        ),
        Rule(
            "ExposeProtoCasing",
            "Protocol in EXPOSE instruction should be lowercase",
            lambda port: f"Defined protocol '{port}' in EXPOSE instruction should be lowercase",
            "expose-proto-casing",
        ),
        Rule(
            "ExposeInvalidFormat",
            "IP address and host-port mapping should not be used in EXPOSE instruction. "
            "This will become an error in a future release",
            lambda port: f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'",
            "expose-invalid-format",
        ),
    )
}


@dataclass(frozen=True)
class Finding:
    """One violation: its rule, its message and its place."""

    rule: Rule
    message: str
    location: Range

    @property
    def short(self) -> str:
        return f"{self.rule.name}: {self.message} (line {self.location.start})"


@dataclass(frozen=True)
class Checks:
    """Which rules apply, and what they have found so far (``findings`` is shared by all derived ones)."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    error: bool = False
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Checks:
        """Read ``skip=A,B;experimental=all;error=true``.

        :raises DockerfileError: in BuildKit's words.
        """
        checks = cls()
        for part in text.strip().split(";", 2) if text.strip() else ():
            key, equals, value = part.partition("=")
            key, value = key.strip(), value.strip()
            if not equals:
                raise DockerfileError(f"invalid check option {go_quote(part)}")
            names = frozenset(each.strip() for each in value.split(","))
            if key == "skip":
                checks = replace(checks, skip_all=True) if value == "all" else replace(checks, skip=names)
            elif key == "experimental":
                checks = (
                    replace(checks, experimental_all=True) if value == "all" else replace(checks, experimental=names)
                )
            elif key == "error":
                if value not in ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"):
                    raise DockerfileError(
                        f"failed to parse check option {go_quote(part)}: strconv.ParseBool: parsing "
                        f"{go_quote(value)}: invalid syntax"
                    )
                checks = replace(checks, error=value[0] in "1tT")
            else:
                raise DockerfileError(f"invalid check option {go_quote(key)}")
        return checks

    def merged(self, comments: Iterable[str]) -> Checks:
        """With what a ``# check=…`` comment above an instruction adds."""
        for comment in comments:
            found = DirectiveReader("").read(comment)
            if found is None or found[0] != "check":
                continue
            try:
                other = Checks.parse(found[1].partition(" ")[0])
            except DockerfileError:
                return self
            return replace(
                self,
                skip=self.skip | other.skip,
                skip_all=self.skip_all or other.skip_all,
                experimental=self.experimental | other.experimental,
                experimental_all=self.experimental_all or other.experimental_all,
            )
        return self

    def report(self, name: str, location: Range, *details: str) -> None:
        """Record a violation of the rule ``name``, unless it is skipped."""
        rule = RULES[name]
        if rule.experimental:
            if not self.experimental_all and name not in self.experimental:
                return
        elif self.skip_all or name in self.skip:
            return
        self.findings.append(Finding(rule, rule.text(*details), location))

    def failure(self) -> DockerfileError | None:
        """The error of a build whose checks are to be errors."""
        if not self.error or not self.findings:
            return None
        names = ", ".join(sorted({finding.rule.name for finding in self.findings}))
        return DockerfileError(f"lint violation found for rules: {names}")
