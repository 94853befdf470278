from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from seacan.engine.config import Mount, VolumeDriverConfig, VolumeOptions
from seacan.engine.database import Database
from seacan.engine.mounts import MountPoint
from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.runtime.bundle import DirectoryRoot, OverlayRoot
from seacan.runtime.launcher import Launcher
from seacan.volumes import local
from seacan.volumes.volumes import ANONYMOUS_LABEL, Volumes


def point(name: str = "", destination: str = "/data", **more: object) -> MountPoint:
    return MountPoint(
        type="volume",
        name=name,
        destination=destination,
        copy=True,
        anonymous=not name,
        **more,  # type: ignore[arg-type]
    )


async def test_a_volume_is_a_folder_with_a_record(volumes: Volumes, events: list[tuple[str, str]]) -> None:
    made = await volumes.create("data", labels={"a": "b"})
    assert Path(made.mountpoint).is_dir()
    assert made.mountpoint.endswith("/volumes/data/_data")
    assert volumes.get("data") == made
    shown = made.inspect()
    assert (shown["Driver"], shown["Labels"], shown["Options"], shown["Scope"]) == ("local", {"a": "b"}, None, "local")
    assert events == [("create", "data")]


async def test_creating_it_again_gives_the_same(volumes: Volumes, events: list[tuple[str, str]]) -> None:
    first = await volumes.create("data", labels={"a": "b"})
    assert await volumes.create("data", labels={"c": "d"}) == first
    assert len(events) == 1


async def test_an_anonymous_volume_has_a_random_name_and_says_so(volumes: Volumes) -> None:
    made = await volumes.create()
    assert len(made.name) == 64
    assert made.labels == {ANONYMOUS_LABEL: ""}
    assert made.anonymous


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"name": "x"}, InvalidParameter, "create x: volume name is too short"),
        ({"name": "a/b"}, InvalidParameter, 'create a/b: "a/b" includes invalid characters'),
        ({"name": "../../etc"}, InvalidParameter, "includes invalid characters"),
        ({"name": ".removed"}, InvalidParameter, "includes invalid characters"),
        ({"name": "a\n"}, InvalidParameter, "includes invalid characters"),
        ({"name": "a" * 300}, InvalidParameter, "includes invalid characters"),
        ({"name": "ok", "driver": "nfs"}, NotFound, 'volume plugin nfs: plugin "nfs" not found'),
        ({"name": "ok", "options": {"foo": "1"}}, InvalidParameter, 'create ok: invalid option: "foo"'),
        ({"name": "ok", "options": {"type": "tmpfs"}}, InvalidParameter, 'missing required option: "device"'),
        ({"name": "ok", "options": {"size": "1m"}}, InvalidParameter, "quota size requested but no quota support"),
        ({"name": "ok", "options": {"size": "x"}}, InvalidParameter, "invalid size: 'x'"),
        (
            {"name": "ok", "options": {"type": "cifs", "device": "//h:445/s"}},
            InvalidParameter,
            "port not allowed in CIFS device URL",
        ),
    ],
)
async def test_what_cannot_be_made_is_refused_in_dockerds_words(
    volumes: Volumes, request_: dict[str, object], error: type[SeacanError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await volumes.create(**request_)  # type: ignore[arg-type]
    assert volumes.list() == []


async def test_a_volume_in_use_is_not_removed(volumes: Volumes) -> None:
    await volumes.create("data", container="c1")
    for force in (False, True):
        with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1\]"):
            await volumes.remove("data", force=force)
    await volumes.detach("c1", [])
    await volumes.remove("data")
    assert not Path(volumes.root, "data").exists()
    assert volumes.find("data") is None


async def test_removing_what_is_not_there(volumes: Volumes) -> None:
    with pytest.raises(NotFound, match="get data: no such volume"):
        await volumes.remove("data")
    await volumes.remove("data", force=True)


async def test_filters(volumes: Volumes) -> None:
    await volumes.create("one", labels={"a": "b"}, container="c1")
    await volumes.create("two", labels={"a": "c"})

    def names(**filters: list[str]) -> list[str]:
        return [volume.name for volume in volumes.list(filters)]

    assert names(label=["a"]) == ["one", "two"]
    assert names(label=["a=b"]) == ["one"]
    assert names(name=["w"]) == ["two"]
    assert names(dangling=["true"]) == ["two"]
    assert names(dangling=["0"]) == ["one"]
    assert names(driver=["nfs"]) == []
    for wrong in ({"foo": ["x"]}, {"dangling": ["x"]}, {"dangling": ["1", "0"]}):
        with pytest.raises(InvalidParameter, match="invalid filter"):
            volumes.list(wrong)


async def test_pruning_takes_the_anonymous_and_unused(volumes: Volumes) -> None:
    anonymous = await volumes.create()
    Path(anonymous.mountpoint, "file").write_bytes(b"x" * 1000)
    used = await volumes.create(container="c1")
    await volumes.create("named")
    pruned = await volumes.prune()
    assert (pruned.names, pruned.reclaimed) == ([anonymous.name], 1000)
    assert {volume.name for volume in volumes.list()} == {used.name, "named"}
    assert (await volumes.prune({"all": ["true"], "label!": ["x"]})).names == ["named"]
    for wrong in ({"foo": ["x"]}, {"all": ["x"]}):
        with pytest.raises(InvalidParameter):
            await volumes.prune(wrong)


async def test_a_volume_with_options_is_never_pruned(volumes: Volumes) -> None:
    await volumes.create("mounted", options={"type": "tmpfs", "device": "tmpfs"})
    assert (await volumes.prune({"all": ["1"]})).names == []


async def test_a_container_refers_to_its_volumes(volumes: Volumes) -> None:
    asked = VolumeOptions(labels={"l": "m"}, driver_config=VolumeDriverConfig(name="local"))
    named = point("data", driver="local", spec=Mount(volume_options=asked))
    anonymous = point()
    for each in (named, anonymous):
        await volumes.attach(each, "c1")
    assert named.source == volumes.get("data").mountpoint
    assert volumes.get("data").labels == {"l": "m"}
    assert volumes.references(anonymous.name) == ["c1"]
    await volumes.detach("c1", [named, anonymous], remove_anonymous=True)
    assert [volume.name for volume in volumes.list()] == ["data"]


async def test_an_anonymous_volume_shared_with_another_container_stays(volumes: Volumes) -> None:
    mine = point()
    await volumes.attach(mine, "c1")
    theirs = point(mine.name)
    theirs.anonymous = True
    await volumes.attach(theirs, "c2")
    await volumes.detach("c1", [mine], remove_anonymous=True)
    assert volumes.references(mine.name) == ["c2"]


async def test_a_container_that_could_not_be_made_leaves_nothing(volumes: Volumes) -> None:
    await volumes.attach(point("data"), "c1")
    await volumes.attach(point(), "c1")
    volumes.release_all("c1")
    assert [volume.name for volume in volumes.list()] == ["data"]
    assert volumes.references("data") == []


class TestCopyUp:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        folder = tmp_path / "image"
        (folder / "data").mkdir(parents=True)
        return folder

    async def fill(self, volumes: Volumes, image: Path, mount_point: MountPoint) -> Path:
        await volumes.attach(mount_point, "c1")
        await volumes.populate([mount_point], DirectoryRoot(str(image)), "c1")
        return Path(mount_point.source)

    async def test_an_empty_folder_gives_owner_and_mode(self, volumes: Volumes, image: Path) -> None:
        os.chown(image / "data", 1000, 1001)
        (image / "data").chmod(0o2750)
        found = (await self.fill(volumes, image, point())).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o2750)

    async def test_everything_is_copied(self, volumes: Volumes, image: Path) -> None:
        data = image / "data"
        (data / "sub").mkdir()
        (data / "sub/file").write_text("content")
        os.chown(data / "sub/file", 5, 6)
        (data / "sub/file").chmod(0o4711)
        os.link(data / "sub/file", data / "again")
        (data / "link").symlink_to("/etc/passwd")
        os.mkfifo(data / "pipe")
        with (data / "sparse").open("wb") as file:
            file.truncate(64 << 20)
            file.seek(32 << 20)
            file.write(b"middle")
        os.utime(data / "sub", ns=(1, 2_000_000_000))
        copied = await self.fill(volumes, image, point())
        found = (copied / "sub/file").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o4711)
        assert found.st_ino == (copied / "again").stat().st_ino
        assert os.readlink(copied / "link") == "/etc/passwd"
        assert stat.S_ISFIFO((copied / "pipe").stat().st_mode)
        assert (copied / "sparse").stat().st_blocks * 512 < 1 << 20
        assert (copied / "sparse").read_bytes()[32 << 20 :][:6] == b"middle"
        assert (copied / "sub").stat().st_mtime_ns == 2_000_000_000

    async def test_attributes_are_copied(self, volumes: Volumes, image: Path) -> None:
        (image / "data/file").write_text("x")
        try:
            os.setxattr(image / "data/file", "user.key", b"value")
        except OSError as error:
            pytest.skip(f"the scratch folder's file system has no user attributes: {error}")
        copied = await self.fill(volumes, image, point())
        assert os.getxattr(copied / "file", "user.key") == b"value"

    async def test_layers_are_merged(self, volumes: Volumes, image: Path, tmp_path: Path) -> None:
        (image / "data/below").write_text("1")
        (image / "data/hidden").write_text("1")
        upper = tmp_path / "upper"
        (upper / "data").mkdir(parents=True)
        (upper / "data/above").write_text("2")
        os.mknod(upper / "data/hidden", stat.S_IFCHR, 0)
        mount_point = point()
        await volumes.attach(mount_point, "c1")
        await volumes.populate([mount_point], OverlayRoot(lower=(str(upper), str(image))), "c1")
        assert sorted(os.listdir(mount_point.source)) == ["above", "below"]

    async def test_what_is_there_already_is_kept(self, volumes: Volumes, image: Path) -> None:
        (image / "data/file").write_text("image")
        made = await volumes.create("data")
        Path(made.mountpoint, "mine").write_text("mine")
        copied = await self.fill(volumes, image, point("data"))
        assert os.listdir(copied) == ["mine"]

    async def test_it_can_be_declined(self, volumes: Volumes, image: Path) -> None:
        (image / "data/file").write_text("image")
        mount_point = point()
        mount_point.copy = False
        assert os.listdir(await self.fill(volumes, image, mount_point)) == []

    async def test_a_file_is_no_place_for_an_anonymous_volume(self, volumes: Volumes, image: Path) -> None:
        (image / "file").write_text("x")
        with pytest.raises(System, match="cannot mount volume over existing file, file exists /file"):
            await self.fill(volumes, image, point(destination="/file"))

    async def test_depth_is_no_obstacle(self, volumes: Volumes, image: Path) -> None:
        deep = image / "data" / "/".join(["d"] * 300)
        deep.mkdir(parents=True)
        (deep / "file").write_text("x")
        copied = await self.fill(volumes, image, point())
        assert (copied / "/".join(["d"] * 300) / "file").read_text() == "x"


class TestMountOptions:
    async def test_a_volume_is_mounted_while_it_is_used(self, volumes: Volumes) -> None:
        options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=33,noexec"}
        made = await volumes.create("data", options=options)
        one, two = point("data"), point("data")
        assert not local.mounted(made.mountpoint)
        await volumes.mount("c1", [one])
        await volumes.mount("c2", [two])
        assert os.stat(made.mountpoint).st_uid == 33
        Path(made.mountpoint, "shared").write_text("x")
        await volumes.unmount("c1", [one])
        assert Path(made.mountpoint, "shared").exists()
        await volumes.unmount("c2", [two])
        assert not local.mounted(made.mountpoint)

    async def test_a_bind_takes_its_flags(self, volumes: Volumes, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        options = {"type": "none", "device": str(tmp_path / "there"), "o": "bind,ro"}
        made = await volumes.create("data", options=options)
        await volumes.mount("c1", [point("data")])
        with pytest.raises(OSError, match="Read-only file system"):
            Path(made.mountpoint, "file").write_text("x")
        await volumes.unmount("c1", [point("data")])

    async def test_what_cannot_be_mounted_fails_the_start_and_hides_the_password(self, volumes: Volumes) -> None:
        options = {"type": "nosuchfs", "device": "/dev/null", "o": "password=secret,username=u"}
        await volumes.create("data", options=options)
        with pytest.raises(System) as failed:
            await volumes.mount("c1", [point("data")])
        where = volumes.get("data").mountpoint
        assert failed.value.message == (
            f"error while mounting volume '{where}': failed to mount local volume: mount /dev/null:{where}, "
            "data: password=********,username=u: no such device"
        )

    async def test_a_server_that_does_not_answer_holds_up_nobody_else(
        self, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = threading.Event()
        monkeypatch.setattr(local, "mount", lambda *_: answer.wait(60))
        names = [f"dead{number}" for number in range(40)]
        for name in names:
            await volumes.create(name, options={"type": "nfs", "device": ":/x", "o": "addr=192.0.2.1"})
        waiting = [asyncio.ensure_future(volumes.mount(f"c-{name}", [point(name)])) for name in names]
        await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.to_thread(int), 5)
        answer.set()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    async def test_what_is_mounted_after_its_container_gave_up_is_unmounted(
        self, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer, really = threading.Event(), local.mount
        monkeypatch.setattr(local, "mount", lambda *given: answer.wait(60) and really(*given))
        made = await volumes.create("late", options={"type": "tmpfs", "device": "tmpfs"})
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(volumes.mount("c1", [point("late")]), 0.05)
        removing = asyncio.ensure_future(volumes.remove("late"))
        await asyncio.sleep(0.05)
        assert not removing.done()
        monkeypatch.setattr(volumes._trash, "discard", lambda _: seen.append(local.mounted(made.mountpoint)))
        seen: list[bool] = []
        answer.set()
        await asyncio.wait_for(removing, 5)
        assert seen == [False]

    async def test_what_a_crash_left_mounted_is_unmounted(
        self, volumes: Volumes, database: Database, launcher: Launcher
    ) -> None:
        options = {"type": "tmpfs", "device": "tmpfs"}
        gone = await volumes.create("gone", options=options, container="c1")
        kept = await volumes.create("kept", options=options, container="c2")
        await volumes.mount("c1", [point("gone")])
        await volumes.mount("c2", [point("kept")])
        again = Volumes(volumes.root, database, launcher, emit=lambda *_: None)
        await again.recover({"c2"})
        assert not local.mounted(gone.mountpoint)
        assert local.mounted(kept.mountpoint)
        assert again.references("gone") == []
        await again.close()


async def test_folders_are_found_again_without_a_database(volumes: Volumes, launcher: Launcher, tmp_path: Path) -> None:
    made = await volumes.create("data", options={"type": "tmpfs", "device": "tmpfs", "o": "size=1m"})
    other = Database(tmp_path / "other.db")
    again = Volumes(volumes.root, other, launcher, emit=lambda *_: None)
    await again.recover(set())
    assert again.get("data").options == made.options
    await again.close()
    other.close()


async def test_a_missing_folder_is_made_again_at_the_start(volumes: Volumes) -> None:
    made = await volumes.create("data")
    Path(made.mountpoint).rmdir()
    await volumes.mount("c1", [point("data")])
    assert Path(made.mountpoint).is_dir()


async def test_a_missing_bind_source_is_made_only_if_asked(volumes: Volumes, tmp_path: Path) -> None:
    made, not_made = tmp_path / "made/deep", tmp_path / "not"
    await volumes.mount(
        "c1",
        [
            MountPoint(type="bind", destination="/a", source=str(made), create_source=True),
            MountPoint(type="bind", destination="/b", source=str(not_made)),
        ],
    )
    assert made.is_dir()
    assert not not_made.exists()


async def test_usage_counts_a_file_once(volumes: Volumes) -> None:
    made = await volumes.create("data", container="c1")
    Path(made.mountpoint, "a").write_bytes(b"x" * 100)
    os.link(Path(made.mountpoint, "a"), Path(made.mountpoint, "b"))
    Path(made.mountpoint, "l").symlink_to("/etc")
    ((volume, usage),) = await volumes.usage()
    assert (volume.name, usage.size, usage.references) == ("data", 100 + len("/etc"), 1)


def test_mount_words_become_flags_and_data() -> None:
    assert local._flags("ro,nosuid,size=1m,rw") == (2, "size=1m")


@pytest.mark.parametrize(
    ("kind", "device", "words", "resolved"),
    [
        ("nfs", ":/x", "addr=10.0.0.1,rw", (":/x", "addr=10.0.0.1,rw")),
        ("nfs", ":/x", "addr=host.test,rw", (":/x", "addr=10.9.9.9,rw")),
        ("cifs", "//host.test/s", "username=u", ("//10.9.9.9/s", "username=u")),
        ("cifs", "//Host.Test/s", "username=u", ("//10.9.9.9/s", "username=u")),
        ("cifs", "//host.test/s%20t", "username=u", ("//10.9.9.9/s t", "username=u")),
        ("cifs", "//10.0.0.1/s%20t", "username=u", ("//10.0.0.1/s%20t", "username=u")),
        ("ext4", "/dev/x", "addr=host.test", ("/dev/x", "addr=host.test")),
    ],
)
def test_names_of_servers_are_resolved(
    monkeypatch: pytest.MonkeyPatch, kind: str, device: str, words: str, resolved: tuple[str, str]
) -> None:
    monkeypatch.setattr(local, "_lookup", lambda _: "10.9.9.9")
    assert local._resolve(kind, device, words) == resolved


def test_a_server_has_an_address_of_ipv4_if_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (family, 0, 6, "", (text, 0)) for family, text in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert local._lookup("server") == "127.0.0.1"


def test_a_server_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    words = r"^error resolving passed in network volume address: lookup server: no such host$"
    with pytest.raises(System, match=words):
        local._resolve("nfs", ":/x", "addr=server")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("//server:445/share", "port not allowed in CIFS device URL, include 'port' in 'o='"),
        ("//a b/share", 'error parsing mount device url: parse "//a b/share": invalid character " " in host name'),
        ("//server/%zz", 'error parsing mount device url: parse "//server/%zz": invalid URL escape "%zz"'),
    ],
)
def test_what_is_no_share(device: str, words: str) -> None:
    with pytest.raises(InvalidParameter) as failed:
        local.check_options({"type": "cifs", "device": device})
    assert failed.value.message == words
