"""Real packages, installed in an image's steps and started in a sandbox: what libaudit, PAM,
libnuma and the like ask a kernel for.

`make test` tries the small ones. OPENMODAL_PROGRAMS=all also tries compilers, runtimes and a
browser: two gigabytes of packages.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

import pytest

from openmodal.app import App
from openmodal.engines import Engine
from openmodal.image import Image
from openmodal.process import StreamType
from openmodal.sandbox import Sandbox

# Each script runs in bash with -ex, and says by its exit code whether all went well.
_AWAIT = 'await() { for n in $(seq 100); do if eval "$1"; then return; fi; sleep 0.1; done; exit 1; }\n'

USERS = """
useradd -m -s /bin/bash ann && groupadd crew && usermod -aG crew ann
test "$(id -nG ann)" = "ann crew"
echo ann:secret | chpasswd && chage -M 99 ann && chsh -s /bin/sh ann && gpasswd -a ann nogroup
test "$(su nobody -s /bin/sh -c 'id -u')" = 65534
test "$(su - ann -c pwd)" = /home/ann
test "$(runuser -u ann -- id -un)" = ann
test "$(sg crew 'id -gn')" = crew
sudo -u ann true
userdel -r ann 2>&1 && groupdel crew
"""

SMALL = {
    "users and groups": USERS,
    "sudo": "test $(sudo id -u) = 0; test $(sudo -u nobody id -un) = nobody",
    "openssh-server": """
        service ssh start
        useradd -m bea; mkdir -p ~/.ssh ~bea/.ssh; ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
        cat ~/.ssh/id_ed25519.pub | tee ~/.ssh/authorized_keys > ~bea/.ssh/authorized_keys
        chown -R bea ~bea/.ssh; chmod 700 ~bea/.ssh; options='-o StrictHostKeyChecking=no -o LogLevel=ERROR'
        test "$(ssh $options root@127.0.0.1 id -un)" = root
        test "$(ssh $options bea@127.0.0.1 id -un)" = bea
        ssh -tt $options bea@127.0.0.1 tty < /dev/null | grep /dev/pts/
        """,
    "redis-server": "service redis-server start; await 'redis-cli ping | grep -q PONG'",
    "nginx-light": """
        service nginx start
        await 'exec 3<>/dev/tcp/127.0.0.1/80'
        printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; read -r line <&3; [[ $line == *" 200 "* ]]
        """,
    "postgresql": """
        service postgresql start
        await 'su postgres -c "psql -qc \\"select 1\\"" >/dev/null 2>&1'
        test "$(su postgres -c "psql -Atqc 'create table t (n int); insert into t values (42); select n from t'")" = 42
        """,
    "cron": """
        echo '@reboot root echo $(id -u) > /tmp/cron' > /etc/cron.d/once; rm -f /run/crond.reboot
        service cron start; await '[ -s /tmp/cron ]'
        """,
    "dbus": """
        call='--print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId'
        dbus-run-session -- dbus-send --session $call
        """,
    "dbus, the system's": """
        service dbus start; dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId
        """,
    "tmux": "tmux new-session -d -s one 'echo hello > /tmp/tmux; sleep 60'; await '[ -s /tmp/tmux ]'; tmux ls; tmux kill-server",
    "iproute2": "ip -br address | grep lo; python3 -m http.server 8099 & await 'ss -Htln | grep -q :8099'; kill %1",
    "iputils-ping": "ping -c 1 -W 5 127.0.0.1",
}

BIG = {
    # Of a sandbox of 2 GiB and one CPU; java takes a quarter of what it sees.
    "default-jdk-headless": """
        cd /tmp; echo 'public class A { public static void main(String[] a) { Runtime r = Runtime.getRuntime();' > A.java
        echo 'System.out.println((r.maxMemory() >> 20) + " " + r.availableProcessors()); } }' >> A.java
        read -r heap cpus <<< "$(java A.java)"; [ $heap -le 600 ]; [ $cpus = 1 ]; java -XX:+UseNUMA -version
        """,
    "golang-go": """
        mkdir -p /tmp/go; cd /tmp/go; export HOME=/root; go mod init a
        printf 'package main\nimport ("os/exec"; "runtime")\n' > main.go
        echo 'func main() { if exec.Command("id").Run() != nil || runtime.GOMAXPROCS(0) != 1 { panic(1) } }' >> main.go; go run .
        """,
    "cargo": "cd /tmp; cargo new --vcs none hello; cd hello; test \"$(cargo run -q)\" = 'Hello, world!'",
    "nodejs": """
        export UV_USE_IO_URING=1
        node -e 'process.exit(require("os").availableParallelism() - 1)'
        node -e 'require("fs").promises.stat("/etc").then(s => process.exit(s.isDirectory() ? 0 : 1))'
        echo 'const h = require("http"); h.createServer((q, r) => r.end()).listen(8098, () =>' > /tmp/a.js
        echo 'h.get("http://localhost:8098", r => process.exit(r.statusCode - 200)))' >> /tmp/a.js; node /tmp/a.js
        """,
    "chromium": """
        chromium --headless --no-sandbox --disable-gpu --dump-dom 'data:text/html,<p>hello' > /tmp/dom
        grep '<p>hello</p>' /tmp/dom
        """,
    "linux-perf": "perf stat -e cycles touch /tmp/ran; [ -e /tmp/ran ]",
    "numactl": "numactl --show | grep physcpubind",
    "strace": "strace -f -o /tmp/trace sh -c 'exit 3' || test $? = 3; grep execve /tmp/trace",
}


def recipe(programs: Iterable[str]) -> Image:
    """An image with these programs' packages; one of its steps adds and removes users, as packages and Dockerfiles do."""
    packages = sorted({*(name for name in programs if " " not in name), "sudo", "openssh-client", "procps"})
    return Image.debian_slim().apt_install(*packages).run_commands(f"bash -exc {shlex.quote(USERS)}")


@pytest.fixture(scope="module")
def small(engine: Engine) -> Image:
    """An image with all small programs."""
    return _built(engine, SMALL)


@pytest.fixture(scope="module")
def big(engine: Engine) -> Image:
    """An image with all big programs."""
    return _built(engine, BIG)


def _built(engine: Engine, programs: Iterable[str]) -> Image:
    image = recipe(programs)
    image.build(engine=engine)
    return image


def _works(engine: Engine, image: Image, programs: Mapping[str, str], program: str) -> None:
    with Sandbox.create(app=App("programs"), image=image, engine=engine, timeout=600) as sandbox:
        process = sandbox.exec("bash", "-exc", _AWAIT + programs[program], timeout=300, stderr=StreamType.STDOUT)
    if process.returncode and program in getattr(engine, "breaks", ()):
        pytest.xfail("the engine's kernel has not got what this program needs")
    assert process.returncode == 0, process.stdout.read()[-3000:]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
@pytest.mark.parametrize("program", SMALL)
def test_a_small_program_works_after_being_installed(engine: Engine, small: Image, program: str) -> None:
    _works(engine, small, SMALL, program)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("program", BIG)
def test_a_big_program_works_after_being_installed(engine: Engine, big: Image, program: str) -> None:
    _works(engine, big, BIG, program)


__all__ = [
    "big",
    "small",
    "test_a_big_program_works_after_being_installed",
    "test_a_small_program_works_after_being_installed",
]
