"""``seacan image``: lists, transfers, archives, and base images from the distribution's packages."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

from seacan.cli.client import Client
from seacan.cli.command import Group, command, each, filters, flag, switch
from seacan.cli.container import confirm, inspect_all, save_stream
from seacan.cli.output import ago, human_size, local_time, short_id, tabulate, write_rows
from seacan.errors import InvalidParameter, System

if TYPE_CHECKING:
    from seacan.registry.credentials import Credentials

Fetched = Mapping[str, Any]


def split_reference(text: str) -> tuple[str, str]:
    """``repository[:tag][@digest]`` → (repository, tag or digest)."""
    name, at, digest = text.partition("@")
    if at:
        return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name, digest
    head, slash, last = name.rpartition("/")
    repository, colon, tag = last.partition(":")
    return f"{head}{slash}{repository}", tag if colon else ""


# --- list ----------------------------------------------------------------------------------------------------------

_HEADERS: Final = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
_TAIL: Final = r"\t{{.ID}}\t{{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}"


def image_rows(item: Fetched, *, truncate: bool, digests: bool) -> list[dict[str, Any]]:
    """An image of ``GET /images/json`` as docker's rows: one a tag, or one a tag and digest."""
    tags: dict[str, list[str]] = {}
    for reference in item.get("RepoTags") or []:
        repository, tag = split_reference(reference)
        if repository != "<none>":
            tags.setdefault(repository, []).append(tag)
    known: dict[str, list[str]] = {}
    for reference in item.get("RepoDigests") or []:
        repository, _, digest = reference.partition("@")
        if repository != "<none>":
            known.setdefault(repository, []).append(digest)
    names: list[tuple[str, str, str]] = []
    for repository, found in tags.items():
        ours = known.pop(repository, []) if digests else known.pop(repository, []) and []
        names += [(repository, tag, digest) for tag in found for digest in ours or ["<none>"]]
    for repository, found in known.items():
        names += [(repository, "<none>", digest) for digest in found] if digests else [(repository, "<none>", "")]
    shared, size = item.get("SharedSize", -1), item["Size"]
    containers = item.get("Containers", -1)
    common = {
        "ID": short_id(item["Id"]) if truncate else item["Id"],
        "CreatedSince": ago(item["Created"]) if item["Created"] > 0 else "",
        "CreatedAt": local_time(item["Created"]),
        "Size": human_size(size),
        "VirtualSize": human_size(size),
        "Containers": "N/A" if containers == -1 else str(containers),
        "SharedSize": "N/A" if shared == -1 else human_size(shared),
        "UniqueSize": "N/A" if shared == -1 else human_size(size - shared),
    }
    return [
        {**common, "Repository": repository, "Tag": tag, "Digest": digest}
        for repository, tag, digest in names or [("<none>", "<none>", "<none>")]
    ]


def _images(
    client: Client,
    arguments: list[str],
    *,
    all: bool,
    digests: bool,
    filter: list[str],
    format: str,
    no_trunc: bool,
    quiet: bool,
    tree: bool,
) -> None:
    """List images"""
    asked = filters([*filter, *(f"reference={name}" for name in arguments)])
    if tree:
        if digests or format or no_trunc or quiet:
            raise InvalidParameter("--tree goes with none of --digests, --format, --no-trunc and --quiet")
        print(tabulate(_tree_rows(client.get("/images/json", all=all, filters=asked, manifests=True))), end="")
        return
    items = client.get("/images/json", all=all, filters=asked, digests=digests)
    table = r"table {{.Repository}}\t{{.Tag}}" + (r"\t{{.Digest}}" if digests else "") + _TAIL
    with_digests = digests or ".Digest" in format
    rows = [row for item in items for row in image_rows(item, truncate=not no_trunc, digests=with_digests)]
    write_rows(rows, format, table, _HEADERS, quiet="{{.ID}}", is_quiet=quiet)


def _tree_rows(images: Iterable[Fetched]) -> list[tuple[str, ...]]:
    """The images, and below each its platforms, in the columns of docker's tree."""
    rows: list[tuple[str, ...]] = [("IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "IN USE")]
    for image in images:
        children = [item for item in image.get("Manifests") or [] if item["Kind"] == "image"]
        content = sum(item["Size"]["Content"] for item in children)
        *others, last = image["RepoTags"] or ["<untagged>"]
        used = "yes" if image["Containers"] > 0 else ""
        rows += [(name, "", "", "", "") for name in others]
        rows.append((last, short_id(image["Id"]), human_size(image["Size"]), human_size(content), used))
        for item in children:
            branch = "└─" if item is children[-1] else "├─"
            platform = item["ImageData"]["Platform"]
            name = "/".join(platform[part] for part in ("os", "architecture", "variant") if platform.get(part))
            used = "yes" if item["ImageData"]["Containers"] else ""
            sizes = [human_size(item["Size"][kind]) if item["Available"] else "-" for kind in ("Total", "Content")]
            rows.append((f"{branch} {name}", short_id(item["ID"]), *sizes, used))
    return rows


for _declare in reversed(
    (
        switch("all", "Show all images (default hides intermediate images)", short="a"),
        switch("digests", "Show digests"),
        flag("filter", "Filter output based on conditions provided", short="f", many=True),
        flag("format", "Format output using a custom template", default=""),
        switch("no-trunc", "Don't truncate output"),
        switch("quiet", "Only show image IDs", short="q"),
        switch("tree", "List the platforms of each image below it"),
    )
):
    _declare(_images)
images = command("images", "[REPOSITORY[:TAG]]", most=1, complete="image")(_images)
ls = command("ls", "[REPOSITORY[:TAG]]", most=1, complete="image")(_images)


@command("history", "IMAGE", exactly=1, complete="image")
@flag("format", "Format output using a custom template", default="")
@switch("human", "Print sizes and dates in human readable format", short="H", default=True)
@switch("no-trunc", "Don't truncate output")
@flag("platform", "Show history for the given platform", default="")
@switch("quiet", "Only show image IDs", short="q")
def history(
    client: Client, arguments: list[str], *, format: str, human: bool, no_trunc: bool, platform: str, quiet: bool
) -> None:
    """Show the history of an image"""
    rows = []
    for item in client.get(f"/images/{arguments[0]}/history", platform=json_platform(platform)):
        line = item["CreatedBy"].replace("\t", " ")
        short = line if no_trunc or len(line) <= 45 else f"{line[:44]}…"
        rows.append(
            {
                "ID": item["Id"] if no_trunc or item["Id"] == "<missing>" else short_id(item["Id"]),
                "CreatedSince": ago(item["Created"]) if human else local_time(item["Created"]),
                "CreatedAt": local_time(item["Created"]),
                "CreatedBy": short,
                "Size": human_size(item["Size"]) if human else str(item["Size"]),
                "Comment": item["Comment"],
            }
        )
    headers = {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY"}
    headers |= {"Size": "SIZE", "Comment": "COMMENT"}
    table = r"table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
    write_rows(rows, format, table, headers, quiet="{{.ID}}", is_quiet=quiet)


@command("inspect", "IMAGE [IMAGE...]", least=1, complete="image")
@flag("format", "Format output using a custom template", short="f", default="")
@flag("platform", "Inspect the image of the given platform", default="")
def inspect(client: Client, arguments: list[str], *, format: str, platform: str) -> None:
    """Display detailed information on one or more images"""
    wanted = json_platform(platform)
    inspect_all(arguments, lambda name: client.get(f"/images/{name}/json", platform=wanted), format)


# --- change --------------------------------------------------------------------------------------------------------


@command("tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", exactly=2, complete="image")
def tag(client: Client, arguments: list[str]) -> None:
    """Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"""
    repository, label = split_reference(arguments[1])
    if "@" in arguments[1]:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    client.post(f"/images/{arguments[0]}/tag", repo=repository, tag=label or "latest")


def _remove(client: Client, arguments: list[str], *, force: bool, no_prune: bool, platform: list[str]) -> None:
    """Remove one or more images"""
    platforms = [json_platform(text) for text in platform]

    def one(image: str) -> str:
        done = client.delete(f"/images/{image}", force=force, noprune=no_prune, platforms=platforms)
        return "\n".join(f"{kind}: {name}" for entry in done for kind, name in entry.items())

    each(arguments, one)


for _declare in (
    flag("platform", "Remove only the given platform", many=True),
    switch("no-prune", "Do not delete untagged parents"),
    switch("force", "Force removal", short="f"),
):
    _declare(_remove)
rmi = command("rmi", "IMAGE [IMAGE...]", least=1, complete="image")(_remove)
rm = command("rm", "IMAGE [IMAGE...]", least=1, complete="image")(_remove)


@command("prune", exactly=0)
@switch("all", "Remove all unused images, not just dangling ones", short="a")
@flag("filter", 'Provide filter values (e.g. "until=<timestamp>")', many=True)
@switch("force", "Do not prompt for confirmation", short="f")
def prune(client: Client, arguments: list[str], *, all: bool, filter: list[str], force: bool) -> None:
    """Remove unused images"""
    confirm(
        "WARNING! This will remove all images without at least one container associated to them."
        if all
        else "WARNING! This will remove all dangling images.",
        force,
    )
    print_pruned(client.post("/images/prune", filters={**(filters(filter) or {}), "dangling": [str(not all).lower()]}))


def print_pruned(answer: Fetched) -> None:
    deleted = answer.get("ImagesDeleted") or []
    if deleted:
        lines = [f"{kind.lower()}: {name}" for entry in deleted for kind, name in entry.items()]
        print("Deleted Images:", *lines, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human_size(answer.get('SpaceReclaimed') or 0)}")


# --- progress ------------------------------------------------------------------------------------------------------


def show_progress(messages: Iterable[Fetched], file: IO[str] | None = None, *, quiet: bool = False) -> None:
    """Draw docker's progress stream: bars that are rewritten in place on a terminal, a line a step elsewhere.

    Raises System with the message that ends a failed stream.
    """
    file = file or sys.stdout
    live = file.isatty()
    lines: dict[str, int] = {}
    for message in messages:
        if error := message.get("error") or (message.get("errorDetail") or {}).get("message"):
            raise System(error)
        if quiet:
            continue
        if "stream" in message:
            file.write(message["stream"])
        elif "status" in message:
            _show_status(message, lines, file, live)
        elif (told := message.get("aux") or {}).get("manifestPushedInsteadOfIndex"):
            index, image = told["originalIndex"]["digest"], told["selectedManifest"]["digest"]
            file.write(f"Not all of index {index} is here: the image {image} was pushed alone\n")
        file.flush()


def _show_status(message: Fetched, lines: dict[str, int], file: IO[str], live: bool) -> None:
    layer, text = message.get("id", ""), message["status"]
    detail = message.get("progressDetail") or {}
    if not live:
        if not detail.get("current"):
            file.write(f"{layer}: {text}\n" if layer else f"{text}\n")
        return
    if not layer:
        lines.clear()
        file.write(f"{text}\n")
        return
    if layer not in lines:
        lines[layer] = len(lines)
        file.write("\n")
    up = len(lines) - lines[layer]
    file.write(f"\x1b[{up}A\r\x1b[2K{layer}: {text} {_bar(detail)}\r\x1b[{up}B")


def _bar(detail: Fetched) -> str:
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if not current:
        return ""
    if not total:
        return human_size(current)
    full = min(int(current * 50 / total), 50)
    bar = "=" * full + (">" if full < 50 else "")
    return f"[{bar:<50}] {human_size(current):>8}/{human_size(total)}"


# --- registries ----------------------------------------------------------------------------------------------------


def registry_auth(image: str) -> str:
    """The ``X-Registry-Auth`` header for an image, from docker's own config.json or its credential helper."""
    registry, slash, _ = image.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry = "https://index.docker.io/v1/"
    entry = _credentials(registry)
    return base64.urlsafe_b64encode(json.dumps(entry).encode()).decode()


def registry_configurations() -> str:
    """The ``X-Registry-Config`` header: every registry's credentials that config.json holds itself."""
    found = {registry: _credentials(registry) for registry in _config().get("auths") or {}}
    return base64.urlsafe_b64encode(json.dumps(found).encode()).decode()


def config_folder() -> str:
    """Where docker's client and this one keep what they know: ``$DOCKER_CONFIG`` or ``~/.docker``."""
    return os.environ.get("DOCKER_CONFIG") or os.path.join(os.environ.get("HOME", "/root"), ".docker")


def registry_wallet() -> Callable[[str], Credentials]:
    """The credentials in docker's config.json by a registry's domain, for what is done without the daemon."""
    from seacan.registry.credentials import decode_header

    return lambda domain: decode_header(registry_auth(f"{domain}/" if domain != "docker.io" else ""))


def _config() -> dict[str, Any]:
    folder = config_folder()
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidParameter(f"cannot read {folder}/config.json: {error}") from None


def _credentials(registry: str) -> dict[str, str]:
    config = _config()
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    if helper:
        return _from_helper(helper, registry)
    entry = (config.get("auths") or {}).get(registry) or {}
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return {"username": user, "password": password.rstrip("\0"), "serveraddress": registry}
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"], "serveraddress": registry}
    return {}


def _from_helper(helper: str, registry: str) -> dict[str, str]:
    """Ask ``docker-credential-<helper>``. Source: the docker-credential-helpers protocol."""
    import subprocess

    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=registry, capture_output=True, text=True, check=False
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError) as error:
        raise InvalidParameter(f"error getting credentials from docker-credential-{helper}: {error}") from None
    if answer.get("Username") == "<token>":
        return {"identitytoken": answer["Secret"], "serveraddress": registry}
    if not answer:
        return {}
    return {"username": answer["Username"], "password": answer["Secret"], "serveraddress": registry}


def pull_image(
    client: Client,
    image: str,
    *,
    platform: str = "",
    quiet: bool = False,
    file: IO[str] | None = None,
    all: bool = False,
) -> None:
    """Pull an image, drawing its progress."""
    repository, tag = split_reference(image)
    query = {"fromImage": repository, "tag": "" if all else tag or "latest", "platform": platform}
    headers = {"X-Registry-Auth": registry_auth(repository)}
    with client.request("POST", "/images/create", query, headers=headers) as response:
        show_progress(response.json_lines(), file, quiet=quiet)


@command("pull", "NAME[:TAG|@DIGEST]", exactly=1, complete="image")
@switch("all-tags", "Download all tagged images in the repository", short="a")
@flag("platform", "Set platform if server is multi-platform capable", default="")
@switch("quiet", "Suppress verbose output", short="q")
def pull(client: Client, arguments: list[str], *, all_tags: bool, platform: str, quiet: bool) -> None:
    """Download an image from a registry"""
    repository, tag = split_reference(arguments[0])
    if all_tags and tag:
        raise InvalidParameter("tag can't be used with --all-tags/-a")
    if not all_tags and not tag and not quiet:
        print("Using default tag: latest")
    pull_image(client, arguments[0], platform=platform, quiet=quiet, all=all_tags)
    print(f"{_familiar(repository)}:{tag or 'latest'}" if not tag.startswith("sha256:") else arguments[0])


def _familiar(repository: str) -> str:
    registry, slash, _ = repository.partition("/")
    if not slash:
        return f"docker.io/library/{repository}"
    return repository if "." in registry or ":" in registry or registry == "localhost" else f"docker.io/{repository}"


@command("push", "NAME[:TAG]", exactly=1, complete="image")
@switch("all-tags", "Push all tags of an image to the repository", short="a")
@flag("platform", "Push a platform-specific manifest as a single-platform image", default="")
@switch("quiet", "Suppress verbose output", short="q")
def push(client: Client, arguments: list[str], *, all_tags: bool, platform: str, quiet: bool) -> None:
    """Upload an image to a registry"""
    repository, tag = split_reference(arguments[0])
    if all_tags and tag:
        raise InvalidParameter("tag can't be used with --all-tags/-a")
    if not all_tags and not tag and not quiet:
        print("Using default tag: latest")
    query = {"tag": "" if all_tags else tag or "latest", "platform": json_platform(platform)}
    headers = {"X-Registry-Auth": registry_auth(repository)}
    with client.request("POST", f"/images/{repository}/push", query, headers=headers) as response:
        show_progress(response.json_lines(), quiet=quiet)
    if quiet:
        print(f"{_familiar(repository)}:{tag or 'latest'}")


def json_platform(text: str) -> str:
    """``linux/arm64/v8`` as the JSON in which save and push take it."""
    if not text:
        return ""
    names = ("os", "architecture", "variant")
    return json.dumps(dict(zip(names, text.split("/", 2), strict=False)), separators=(",", ":"))


_SEARCH_HEADERS: Final = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
    "IsAutomated": "AUTOMATED",
}


@command("search", "TERM", exactly=1)
@flag("filter", "Filter output based on conditions provided", short="f", many=True)
@flag("format", "Pretty-print search using a Go template", default="")
@flag("limit", "Max number of search results", kind="int", default=0)
@switch("no-trunc", "Don't truncate output")
def search(client: Client, arguments: list[str], *, filter: list[str], format: str, limit: int, no_trunc: bool) -> None:
    """Search a registry for images"""
    query = {"term": arguments[0], "limit": limit or None, "filters": filters(filter)}
    with client.request(
        "GET", "/images/search", query, headers={"X-Registry-Auth": registry_auth(arguments[0])}
    ) as answer:
        found = answer.json()
    rows = []
    for item in found:
        text = item["description"].replace("\n", " ").replace("\r", " ")
        rows.append(
            {
                "Name": item["name"],
                "Description": text if no_trunc or len(text) <= 45 else f"{text[:44]}…",
                "StarCount": str(item["star_count"]),
                "IsOfficial": "[OK]" if item["is_official"] else "",
                "IsAutomated": "[OK]" if item["is_automated"] else "",
            }
        )
    write_rows(rows, format, r"table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}", _SEARCH_HEADERS)


# --- archives ------------------------------------------------------------------------------------------------------


@command("load", exactly=0)
@flag("input", "Read from tar archive file, instead of STDIN", short="i", default="")
@flag("platform", "Load only the given platform", many=True)
@switch("quiet", "Suppress the load output", short="q")
def load(client: Client, arguments: list[str], *, input: str, platform: list[str], quiet: bool) -> None:
    """Load an image from a tar archive or STDIN"""
    if not input and sys.stdin.isatty():
        raise InvalidParameter("requested load from stdin, but stdin is empty")
    with _source(input) as file:
        load_archive(client, file, platforms=platform, quiet=quiet)


def load_archive(client: Client, file: IO[bytes], *, platforms: Sequence[str] = (), quiet: bool = False) -> None:
    """Send an archive to the daemon and show what it loaded."""
    query = {
        "quiet": "1" if quiet or not sys.stdout.isatty() else "0",
        "platform": [json_platform(text) for text in platforms],
    }
    headers = {"Content-Type": "application/x-tar"}
    with client.request("POST", "/images/load", query, body=file, headers=headers) as response:
        show_progress(response.json_lines())


def _source(path: str) -> IO[bytes]:
    if not path or path == "-":
        return sys.stdin.buffer
    try:
        return open(path, "rb")
    except OSError as error:
        raise InvalidParameter(f"open {path}: {(error.strerror or str(error)).lower()}") from None


@command("save", "IMAGE [IMAGE...]", least=1, complete="image")
@flag("output", "Write to a file, instead of STDOUT", short="o", default="")
@flag("platform", "Save only the given platform", many=True)
def save(client: Client, arguments: list[str], *, output: str, platform: list[str]) -> None:
    """Save one or more images to a tar archive (streamed to STDOUT by default)"""
    query = {"names": arguments, "platform": [json_platform(text) for text in platform]}
    with client.request("GET", "/images/get", query) as response:
        save_stream(response.chunks(), output, "cowardly refusing to save to a terminal. Use the -o flag or redirect")


@command("import", "file|URL|- [REPOSITORY[:TAG]]", least=1, most=2)
@flag("change", "Apply Dockerfile instruction to the created image", short="c", many=True)
@flag("message", "Set commit message for imported image", short="m", default="")
@flag("platform", "Set platform if server is multi-platform capable", default="")
def import_(client: Client, arguments: list[str], *, change: list[str], message: str, platform: str) -> None:
    """Import the contents from a tarball to create a filesystem image"""
    source = arguments[0]
    repository, tag = split_reference(arguments[1]) if len(arguments) == 2 else ("", "")
    remote = source.startswith(("http://", "https://"))
    query = {
        "fromSrc": source if remote else "-",
        "repo": repository,
        "tag": tag,
        "message": message,
        "changes": change,
        "platform": platform,
    }
    if remote:
        with client.request("POST", "/images/create", query) as response:
            show_progress(response.json_lines())
        return
    with _source(source) as file, client.request("POST", "/images/create", query, body=file) as response:
        show_progress(response.json_lines())


# --- bootstrap -----------------------------------------------------------------------------------------------------


@command("bootstrap", "NAME [NAME...]", least=1)
@flag("mirror", "Address of the packages, instead of the distribution's own", default="")
@flag("output", "Write the archive to a file instead of loading it", short="o", default="")
def bootstrap(client: Client, arguments: list[str], *, mirror: str, output: str) -> None:
    """Make base images from the distribution's packages

    NAME is busybox, or debian[:SUITE]; without a suite, the one of this host if it is a Debian, else stable.
    The image is loaded into the daemon, or written to --output.
    """
    import sys
    import tempfile
    from pathlib import Path

    from seacan.images.bootstrap import bootstrap as make

    if output and len(arguments) > 1:
        raise InvalidParameter("--output takes one image")

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for name in arguments:
        if output:
            make(name, Path(output), mirror=mirror, tell=tell)
            continue
        with tempfile.TemporaryDirectory(prefix="seacan-bootstrap-", dir="/var/tmp") as folder:
            archive = Path(folder) / "image.tar"
            make(name, archive, mirror=mirror, tell=tell)
            with archive.open("rb") as file:
                load_archive(client, file)


# --- copy ----------------------------------------------------------------------------------------------------------


@command("copy", "SOURCE DESTINATION", least=2, most=2)
@flag("insecure", "Registry to reach without TLS verification", many=True)
def copy_(client: Client, arguments: list[str], *, insecure: list[str]) -> None:
    """Copy an image between registries, OCI layouts and archives, without unpacking it

    A place is NAME[:TAG|@DIGEST] in a registry, oci:FOLDER[:TAG], or archive:FILE[:TAG]. No daemon is asked.
    """
    import asyncio

    from seacan.registry.copy import copy

    source, destination = arguments
    digest = asyncio.run(
        copy(source, destination, credentials=registry_wallet(), insecure=insecure, tell=lambda text: print(text))
    )
    print(digest)


# --- the noun ------------------------------------------------------------------------------------------------------

_HERE = "seacan.cli.image"
VERBS: Final[Mapping[str, tuple[str, str]]] = {
    "bootstrap": (f"{_HERE}:bootstrap", "Make base images from the distribution's packages"),
    "copy": (f"{_HERE}:copy_", "Copy an image between registries, OCI layouts and archives, without unpacking it"),
    "history": (f"{_HERE}:history", "Show the history of an image"),
    "import": (f"{_HERE}:import_", "Import the contents from a tarball to create a filesystem image"),
    "inspect": (f"{_HERE}:inspect", "Display detailed information on one or more images"),
    "load": (f"{_HERE}:load", "Load an image from a tar archive or STDIN"),
    "ls": (f"{_HERE}:ls", "List images"),
    "prune": (f"{_HERE}:prune", "Remove unused images"),
    "pull": (f"{_HERE}:pull", "Download an image from a registry"),
    "push": (f"{_HERE}:push", "Upload an image to a registry"),
    "rm": (f"{_HERE}:rm", "Remove one or more images"),
    "save": (f"{_HERE}:save", "Save one or more images to a tar archive (streamed to STDOUT by default)"),
    "tag": (f"{_HERE}:tag", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
}
group = Group("image", "Manage images", VERBS)
