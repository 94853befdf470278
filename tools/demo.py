"""`make demo`: an engine in a scratch folder and a network namespace, containers in it, and what isolates them.

Everything goes through the Docker API: by the `docker` command where there is one, else by `seacan`, which takes the
same words. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.bench.measure import API
from tests.hosts import Daemon, Host, scratch

BOLD, DIM, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")
SEACAN = [sys.executable, "-m", "seacan.cli.main"]
CLIENT = [found] if (found := shutil.which("docker")) else SEACAN


class Demo:
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def show(self, command: str, *, client: list[str] | None = None, expect: int = 0) -> str:
        """Print a command as a user would type it, run it, print what it said."""
        client = client or CLIENT
        name = "docker" if client[0].endswith("docker") else "seacan"
        print(f"{BOLD}$ {name} {command}{PLAIN}", flush=True)
        done = subprocess.run(
            [*client, *shlex.split(command)],
            env=self.daemon.environment(PYTHONPATH=os.environ.get("PYTHONPATH", str(Path.cwd()))),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        print("".join(f"  {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        if done.returncode != expect:
            raise SystemExit(
                f"demo: exit status {done.returncode} where {expect} was expected\n{self.daemon.log_tail()}"
            )
        return done.stdout.strip()

    def say(self, text: str) -> None:
        print(f"\n{DIM}# {text}{PLAIN}", flush=True)


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("demo: containers are made by root; try: sudo make demo")
    started = time.monotonic()
    host = Host()
    with scratch("demo") as folder:
        daemon = Daemon(folder / "daemon", host)
        try:
            tour(Demo(daemon), daemon)
        finally:
            daemon.close()
            host.close()
    print(f"\ndemo: done in {time.monotonic() - started:.1f} s; nothing is left behind")


def tour(demo: Demo, daemon: Daemon) -> None:
    demo.say("An engine, in a scratch folder and a network namespace of its own.")
    begun = time.monotonic()
    daemon.start()
    print(f"  seacand answers on {daemon.url} after {(time.monotonic() - begun) * 1000:.0f} ms")
    demo.show("version --format '{{.Server.Version}}, API {{.Server.APIVersion}}'")

    demo.say("No registry is needed: a base image is made of the distribution's own package.")
    demo.show("image bootstrap busybox", client=SEACAN)
    demo.show("images")

    demo.say("A container.")
    demo.show("run --rm busybox echo 'Hello from a container'")
    demo.show("run --rm busybox sh -c 'exit 7'", expect=7)

    demo.say("What isolates it: namespaces of its own …")
    demo.show("run --rm --hostname inside busybox sh -c 'hostname; ps; ip -o -4 addr'")
    demo.say("… fourteen capabilities, a seccomp filter, paths of /proc hidden or read-only …")
    demo.show("run --rm busybox grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status")
    demo.show("run --rm busybox sh -c 'cat /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic'", expect=1)
    demo.show("run --rm busybox mount -t tmpfs none /mnt", expect=1)
    demo.say("… and limits: 32 MiB are not enough for 64, and the kernel ends what tries.")
    demo.show("run --rm --memory 32m --memory-swap 32m busybox sh -c 'dd if=/dev/zero of=/dev/shm/x bs=1M count=60'",
              expect=137)  # fmt: skip

    build_and_ship(demo)

    demo.say("No crash of ours stops a container: kill -9 the engine, and start another.")
    demo.show("run -d --name counter busybox sh -c 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done'")
    launcher = daemon.launcher_pids()
    daemon.kill()
    for pid in launcher:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    print("  (the engine and its launcher are dead)")
    time.sleep(0.5)
    daemon.start()
    demo.show("ps --format 'table {{.Names}}\\t{{.Image}}\\t{{.Status}}'")
    lines = demo.show("logs --tail 3 counter").splitlines()
    if not lines or int(lines[-1]) < 4:
        raise SystemExit("demo: the container did not go on while the engine was dead")
    demo.show("rm -f counter")

    demo.say("In an instant: create, start, wait and remove, through the API, 20 times.")
    api = API(daemon.socket)
    for name, mode in (("no network", "none"), ("default bridge", "default")):
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            api.run(NetworkMode=mode)
            times.append((time.perf_counter() - begun) * 1000)
        print(f"  {name:<15} median {sorted(times)[10]:.1f} ms, fastest {min(times):.1f} ms")
    api.close()


DOCKERFILE = """\
FROM busybox AS page
RUN mkdir /www && echo "built $(date +%Y)" > /www/index.html

FROM busybox
COPY --from=page /www /www
EXPOSE 80
CMD ["httpd", "-f", "-p", "80", "-h", "/www"]
"""


def build_and_ship(demo: Demo) -> None:
    """Build an image, push it to a registry of ours, lose it, pull it back, and run it."""
    demo.say("Build, ship, run. This is the Dockerfile:")
    context = demo.daemon.folder / "app"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    print("".join(f"  {line}\n" for line in DOCKERFILE.splitlines()), end="")
    demo.show(f"build -t 127.0.0.1:5000/app {context}", client=SEACAN)
    with registry(demo):
        demo.show("push 127.0.0.1:5000/app")
        demo.show("rmi 127.0.0.1:5000/app")
        demo.show("run -d --name app -p 8080:80 127.0.0.1:5000/app")
        demo.show("ps --format 'table {{.Image}}\\t{{.Command}}\\t{{.Ports}}'")
        page = demo.daemon.host.run("busybox", "wget", "-qO-", "http://127.0.0.1:8080/").stdout
        print(f"{BOLD}$ wget -qO- http://127.0.0.1:8080/{PLAIN}\n  {page}", end="", flush=True)
    demo.show("rm -f app")


@contextlib.contextmanager
def registry(demo: Demo) -> Iterator[None]:
    """``seacan registry serve`` on the demo's host."""
    command = ["registry", "serve", "--root", str(demo.daemon.folder / "registry"), "--listen", "127.0.0.1:5000"]
    print(f"{BOLD}$ seacan {' '.join(command)} &{PLAIN}", flush=True)
    process = subprocess.Popen(demo.daemon.host.command(*SEACAN, *command), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        print(f"  {process.stdout.readline()}", end="", flush=True)
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()
