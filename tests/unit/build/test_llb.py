"""What a client may define itself, and that the rest is refused in words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from seacan.build.buildkit import llb
from seacan.build.buildkit import messages as pb
from seacan.build.graph import CopyFiles, Files, GitSource, HttpSource, ImageSource, LocalSource, Scratch, Vertex
from seacan.errors import InvalidParameter, SeacanError, Unsupported
from seacan.storage import digest as digests


async def image(reference: str, _platform: pb.Platform | None) -> Vertex:
    return Vertex(ImageSource(reference, "sha256:c"))


def digest_of(op: pb.Op) -> str:
    return digests.of(op.encode())


def definition(*ops: pb.Op) -> pb.Definition:
    last = pb.Op(inputs=[pb.Input(digest_of(ops[-1]))])
    return pb.Definition([each.encode() for each in (*ops, last)])


def source(identifier: str, **attrs: str) -> pb.Op:
    return pb.Op(source=pb.SourceOp(identifier, {key.replace("_", "."): value for key, value in attrs.items()}))


def files(*actions: llb._Action, inputs: Sequence[pb.Op] = ()) -> pb.Op:
    return pb.Op(inputs=[pb.Input(digest_of(each)) for each in inputs], file=llb._Files(list(actions)).encode())


@pytest.mark.parametrize(
    ("op", "operation"),
    [
        (source("git://r.example/a.git#v1:sub"), GitSource("https://r.example/a.git", "v1", "sub")),
        (
            source("git://r.example/a.git", git_fullurl="ssh://git@r.example/a.git", git_keepgitdir="true"),
            GitSource("ssh://git@r.example/a.git", keep_git_dir=True),
        ),
        (source("https://r.example/f.txt?x"), HttpSource("https://r.example/f.txt?x", "f.txt")),
        (source("http://r.example/f", http_filename="Dockerfile"), HttpSource("http://r.example/f", "Dockerfile")),
        (source("local://context"), LocalSource("context", (), ("/",))),
        (source("local://context", local_excludepatterns='["a"]'), LocalSource("context", ("a",), ("/",))),
        (source("docker-image://docker.io/library/busybox"), ImageSource("docker.io/library/busybox", "sha256:c")),
    ],
)
async def test_sources(op: pb.Op, operation: object) -> None:
    assert (await llb.graph(definition(op), image)).operation == operation


async def test_a_part_of_a_repository_is_copied_with_what_is_beside_it() -> None:
    repository = source("git://r.example/a.git")
    copy = llb._Action(-1, 0, -1, copy=llb._Copy("app", "/", contents=True, mode=-1))
    link = llb._Action(1, 0, 0, copy=llb._Copy("more", "/more", mode=-1))
    vertex = await llb.graph(definition(repository, files(copy, link, inputs=[repository])), image)
    assert vertex.operation == Files(
        (
            CopyFiles(1, "app", "/", follow=False, wildcards=False),
            CopyFiles(2, "more", "/more", follow=False, contents=False, wildcards=False),
        )
    )
    base, first, second = vertex.inputs
    assert base.operation == Scratch() and first is second
    assert isinstance(first.operation, GitSource)


@pytest.mark.parametrize(
    ("op", "error", "words"),
    [
        (pb.Op(exec=b"\x0a\x00"), Unsupported, "LLB operations of type exec are not supported"),
        (pb.Op(diff=b"\x0a\x00"), Unsupported, "type diff"),
        (source("oci-layout://x"), Unsupported, "LLB sources of type oci-layout"),
        (source("local://x", local_includepattern="[]"), Unsupported, "include patterns"),
        (source("local://x", local_followpaths="{"), InvalidParameter, "no list of strings"),
        (source("http://x/y", http_filename="../z"), InvalidParameter, "invalid file name"),
        (source("git://x/y", git_fullurl="file:///etc"), InvalidParameter, "invalid git remote"),
        (source("git://x/y", git_fullurl="--upload-pack=/bin/sh"), InvalidParameter, "invalid git remote"),
        (files(llb._Action(0, 0, 0, copy=llb._Copy("a", "b"))), InvalidParameter, "there is no input 0"),
        (files(llb._Action(-1, 7, 0, copy=llb._Copy("a", "b"))), InvalidParameter, "there is no input 7"),
        (files(llb._Action(-1, 0, 3, copy=llb._Copy("a", "b"))), Unsupported, "several results"),
        (files(llb._Action(-1, 0, 0)), Unsupported, "other than copy, mkfile and mkdir"),
        (pb.Op(inputs=[pb.Input("sha256:no")], file=b"\x12\x00"), InvalidParameter, "invalid input sha256:no"),
        (pb.Op(file=b"\xff"), InvalidParameter, "malformed"),
    ],
)
async def test_the_rest_is_refused(op: pb.Op, error: type[SeacanError], words: str) -> None:
    with pytest.raises(error, match=words):
        await llb.graph(definition(op), image)


async def test_merges_of_merges_are_bounded() -> None:
    """Thirty operations that double the layers would be a thousand million of them in the daemon's memory."""
    ops = [source("docker-image://a")]
    for _ in range(30):
        both = [pb.Input(digest_of(ops[-1]))] * 2
        ops.append(pb.Op(inputs=both, merge=b"\x0a\x00"))
    assert await llb.graph(definition(*ops[:10]), image)
    with pytest.raises(InvalidParameter, match="more than 1000 layers"):
        await llb.graph(definition(*ops), image)
    wide = pb.Op(inputs=[pb.Input(digest_of(ops[0]))] * 5000, merge=b"\x0a\x00")
    with pytest.raises(InvalidParameter, match="more than 1000 layers"):
        await llb.graph(definition(ops[0], wide), image)


async def test_a_definition_that_names_no_result_or_has_no_end_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="no result"):
        await llb.graph(pb.Definition([source("local://x").encode()]), image)
    with pytest.raises(InvalidParameter, match="the limit is"):
        await llb.graph(pb.Definition([b""] * 5000), image)
