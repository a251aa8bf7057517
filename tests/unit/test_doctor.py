"""`openmodal doctor`'s checks, on machines that are folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from openmodal import _idmap
from openmodal._spec import Info
from openmodal.engines.check import Check
from openmodal.engines.embedded import doctor, host, rootless, trace, verdict
from openmodal.engines.embedded.doctor import Machine
from openmodal.engines.embedded.verdict import Tried
from openmodal.errors import EngineError

V1 = [f"1 1 0:1 / {{0}}/{name} rw - cgroup cgroup rw,{name}\n" for name in ("memory", "pids", "cpu")]
DISK = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / /srv rw - nfs4 there rw\n3 1 0:8 / /with\\040space rw - xfs x rw\n"


def machine(
    root: Path, files: dict[str, str] | None = None, *, uid: int = 0, release: str = "6.1.0", tools: Iterable[str] = ()
) -> Machine:
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return Machine(root, root / "state", uid, release, "x86_64", lambda name: name if name in tools else None)


@pytest.mark.parametrize(
    ("release", "uid", "ok"),
    [
        ("5.19.0-1-amd64", 0, True),
        ("5.18.9", 0, False),
        ("5.12.0", 1000, True),
        ("5.11.0", 1000, False),
        ("4.19.0", 1000, False),
        ("odd", 0, False),
    ],
)
def test_the_kernel_has_to_be_new_enough(tmp_path: Path, release: str, uid: int, ok: bool) -> None:
    assert doctor.kernel(machine(tmp_path, release=release, uid=uid)).ok is ok


@pytest.mark.parametrize(
    ("setting", "value", "root_ok", "user_ok"),
    [
        ("user/max_user_namespaces", "0", False, False),
        ("kernel/unprivileged_userns_clone", "0", True, False),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", True, False),
        ("kernel/apparmor_restrict_unprivileged_userns", "0", True, True),
    ],
)
def test_user_namespaces_are_refused_by_name_of_the_setting(
    tmp_path: Path, setting: str, value: str, root_ok: bool, user_ok: bool
) -> None:
    files = {"proc/sys/user/max_user_namespaces": "15000", f"proc/sys/{setting}": value}
    as_root = doctor.user_namespaces(machine(tmp_path, files))
    as_user = doctor.user_namespaces(machine(tmp_path, files, uid=1000))
    assert (as_root.ok, as_user.ok) == (root_ok, user_ok)
    assert user_ok or f"sysctl -w {setting.replace('/', '.')}=" in as_user.remedy


def test_overlayfs_may_be_a_module_that_root_can_load(tmp_path: Path) -> None:
    assert not doctor.overlay(machine(tmp_path)).ok
    files = {"lib/modules/6.1.0/modules.dep": "kernel/fs/overlayfs/overlay.ko: \n"}
    assert doctor.overlay(machine(tmp_path, files)).ok
    assert not doctor.overlay(machine(tmp_path, files, uid=1000)).ok
    assert doctor.overlay(machine(tmp_path, {"proc/filesystems": "nodev\tsysfs\nnodev\toverlay\n"}, uid=1000)).ok


def test_limits_need_three_controllers_unless_the_user_says_that_they_may_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENMODAL_ALLOW_DEGRADED", raising=False)
    files = {f"{name}/openmodal/pids.max": "max\n" for name in ("memory", "pids", "cpu")}
    found = doctor.limits(machine(tmp_path, {**files, "proc/self/mountinfo": "".join(V1).format(tmp_path)}))
    assert found.ok
    assert "v1" in found.text
    assert (tmp_path / "pids/openmodal/pids.max").read_text() != "max\n", "it was tried"
    found = doctor.limits(machine(tmp_path, {"proc/self/mountinfo": "".join(V1).format("/nothing")}))
    assert (found.ok, found.required) == (False, True)
    assert "/nothing/" in found.text
    assert "run as root" in found.remedy
    found = doctor.limits(machine(tmp_path, {"proc/self/mountinfo": V1[0].format(tmp_path)}))
    assert (found.ok, found.required) == (False, True)
    assert "limits of memory hold" in found.text
    found = doctor.limits(machine(tmp_path, {"proc/self/cgroup": "0::/\n"}, uid=1000))
    assert (found.ok, found.required) == (False, True)
    assert "systemd-run --user --scope" in found.remedy
    monkeypatch.setenv("OPENMODAL_ALLOW_DEGRADED", "limits")
    found = doctor.limits(machine(tmp_path, {"proc/self/cgroup": "0::/\n"}, uid=1000))
    assert (found.ok, found.required) == (False, False)


@pytest.mark.parametrize(
    ("tools", "ok", "remedy"),
    [
        (("iptables-restore", "nsenter"), True, ""),
        (("nft", "nsenter"), True, ""),
        (("nsenter",), False, "apt-get install iptables"),
        (("nft",), False, "apt-get install util-linux"),
    ],
)
def test_root_needs_a_firewall_program(tmp_path: Path, tools: tuple[str, ...], ok: bool, remedy: str) -> None:
    found = doctor.way_out(machine(tmp_path, tools=tools))
    assert found.ok is ok
    assert ok or found.remedy.startswith(f"{remedy};")


def test_a_root_that_may_lack_a_network_needs_no_firewall_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENMODAL_ALLOW_DEGRADED", "network")
    found = doctor.way_out(machine(tmp_path))
    assert (found.ok, found.required) == (False, False)


def test_a_user_needs_a_helper_and_the_tun_device_unless_a_network_may_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENMODAL_ALLOW_DEGRADED", raising=False)
    found = doctor.way_out(machine(tmp_path, uid=1000, tools=("pasta",)))
    assert (found.ok, found.required) == (False, True)
    assert "modprobe tun" in found.remedy
    tun = {"dev/net/tun": ""}
    assert doctor.way_out(machine(tmp_path, tun, uid=1000, tools=("pasta",))).ok
    assert doctor.way_out(machine(tmp_path, tun, uid=1000, tools=("slirp4netns",))).ok
    found = doctor.way_out(machine(tmp_path, tun, uid=1000))
    assert (found.ok, found.required) == (False, True)
    assert "apt-get install passt" in found.remedy
    found = doctor.way_out(machine(tmp_path / "bare", uid=1000))
    assert "modprobe tun" in found.remedy
    assert "apt-get install passt" in found.remedy, "all at once"
    monkeypatch.setenv("OPENMODAL_ALLOW_DEGRADED", "network")
    found = doctor.way_out(machine(tmp_path, tun, uid=1000))
    assert (found.ok, found.required) == (False, False)


def test_a_users_sandboxes_ask_the_machines_servers_the_first_by_a_helper(tmp_path: Path) -> None:
    def asked(resolv_conf: str) -> tuple[str, tuple[str, ...]]:
        found = doctor.resolver(machine(tmp_path, {"etc/resolv.conf": resolv_conf}, uid=1000))
        assert found.ok
        return found.text.split(",", 1)[0].rpartition(" ")[2], tuple(rootless.servers(lambda _: None, tmp_path))

    stub, named = "nameserver 127.0.0.53\n", "nameserver 192.0.2.53\n"
    assert asked(stub) == ("127.0.0.53", (rootless.RESOLVER,))
    assert asked(named) == ("192.0.2.53", (rootless.RESOLVER,))
    assert asked(f"{stub}nameserver ::1\n{named}") == ("127.0.0.53", (rootless.RESOLVER, "192.0.2.53"))
    assert asked(f"{named}{stub}") == ("192.0.2.53", (rootless.RESOLVER,)), "nobody else reaches the loopback"
    assert asked("") == ("1.1.1.1", (rootless.RESOLVER, "8.8.8.8")), "public ones"


def test_where_apparmor_keeps_resolv_conf_from_pasta_slirp4netns_is_asked(tmp_path: Path) -> None:
    """Without it, sandboxes ask those behind systemd-resolved, or public ones."""
    behind = tmp_path / "run/systemd/resolve/resolv.conf"
    files = {
        "dev/net/tun": "",
        "run/stub": "nameserver 127.0.0.53\n",
        str(behind): "nameserver 192.0.2.53\n",
        "etc/x": "",
    }
    there = machine(tmp_path, files, uid=1000)
    (tmp_path / "sys/kernel/security/apparmor").mkdir(parents=True)
    (tmp_path / "etc/resolv.conf").symlink_to(tmp_path / "run/stub")
    both = replace(there, which=str)
    assert "127.0.0.53" in doctor.resolver(both).text
    assert doctor.way_out(both).text == "by slirp4netns or pasta"
    found = doctor.resolver(there)
    assert found.ok
    assert "192.0.2.53" in found.text
    behind.unlink()
    found = doctor.resolver(there)
    assert not found.ok
    assert "public" in found.text


def test_a_user_without_sub_ids_is_told_how_to_get_them(tmp_path: Path) -> None:
    assert "apt-get install uidmap" in doctor.user(machine(tmp_path, uid=4242)).remedy
    assert "usermod" in doctor.user(machine(tmp_path, uid=4242, tools=_idmap.HELPERS)).remedy
    files = {"etc/subuid": "4242:100000:65536\n", "etc/subgid": "4242:100000:65536\n"}
    assert doctor.user(machine(tmp_path, files, uid=4242, tools=_idmap.HELPERS)).ok
    assert not doctor.user(machine(tmp_path, files, uid=4242, tools=("newuidmap",))).ok, (
        "the other one writes the groups' map"
    )


def test_the_resolver_on_the_machines_loopback_cannot_be_asked(tmp_path: Path) -> None:
    found = doctor.resolver(machine(tmp_path, {"etc/resolv.conf": "nameserver 127.0.0.53\n"}))
    assert not found.ok
    assert "public" in found.text
    assert doctor.resolver(machine(tmp_path, {"etc/resolv.conf": "nameserver 192.0.2.53\n"})).ok
    files = {"etc/resolv.conf": "nameserver 127.0.0.53\n", "run/systemd/resolve/resolv.conf": "nameserver 192.0.2.53\n"}
    assert doctor.resolver(machine(tmp_path, files)).ok


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "ext4"), ("/srv/openmodal", "nfs4"), ("/srvother", "ext4"), ("/with space/x", "xfs")]
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert doctor.file_system(DISK, path) == kind


def runsc(tmp_path: Path, version: str) -> Machine:
    program = tmp_path / "runsc"
    program.write_text(f"#!/bin/sh\necho runsc version {version}\necho spec: 1.1.0\n")
    program.chmod(0o755)

    def which(name: str) -> str | None:
        return str(program) if name == "runsc" else None

    return replace(machine(tmp_path), which=which)


def test_gvisor_is_told_with_its_version_and_age_and_an_old_one_is_not_ok(tmp_path: Path) -> None:
    found = doctor.runsc(runsc(tmp_path, "release-20260817.0"), today=date(2027, 2, 13))
    assert (found.ok, found.required) == (True, False)
    assert found.text == "runsc version release-20260817.0, 180 days old"
    found = doctor.runsc(runsc(tmp_path, "release-20260817.0"), today=date(2027, 2, 14))
    assert not found.ok
    assert "install a newer one" in found.remedy
    assert not doctor.runsc(runsc(tmp_path, "unknown")).ok


def test_without_gvisor_the_remedy_is_told_and_sandboxes_run_all_the_same(tmp_path: Path) -> None:
    found = doctor.runsc(machine(tmp_path))
    assert (found.ok, found.required) == (False, False)
    assert "apt-get install runsc" in found.remedy


def test_the_store_is_private(tmp_path: Path) -> None:
    here = machine(tmp_path)
    assert doctor.privacy(here).ok, "it is made private"
    assert "not there yet" in doctor.privacy(here).text
    here.state.mkdir(mode=0o755)
    here.state.chmod(0o755)
    assert not doctor.privacy(here).ok
    here.state.chmod(0o700)
    assert doctor.privacy(here).ok


def test_a_disk_limit_needs_root_ext4_loop_devices_and_mkfs(tmp_path: Path) -> None:
    files = {"proc/filesystems": "nodev\tsysfs\n\text4\n", "dev/loop-control": ""}
    assert doctor.disk_limit(machine(tmp_path, files, tools=("mkfs.ext4",))).ok
    assert "root" in doctor.disk_limit(machine(tmp_path, files, uid=1000, tools=("mkfs.ext4",))).text
    assert "mkfs.ext4" in doctor.disk_limit(machine(tmp_path, files)).text


@pytest.mark.parametrize(
    ("uid", "options", "what"),
    [(0, "rw,prjquota", "project quota"), (0, "rw,usrquota", "guard"), (1000, "rw,prjquota", "guard")],
)
def test_it_tells_what_limits_a_sandbox_without_a_disk(tmp_path: Path, uid: int, options: str, what: str) -> None:
    mounts = f"22 1 8:1 / / rw - ext4 /dev/sda {options}\n"
    text = doctor.disk_limit(machine(tmp_path, {"proc/self/mountinfo": mounts}, uid=uid)).text
    assert f"; without it {'a' if what == 'project quota' else 'the'} {what}" in text


@pytest.mark.parametrize("uid", [0, 1000])
def test_everything_that_is_missing_has_a_remedy_that_is_whole(tmp_path: Path, uid: int) -> None:
    """One was "apt-get install " without a package, and "limits of nothing" held."""
    for check in doctor.look(machine(tmp_path, release="2.6.32", uid=uid)):
        assert check.ok or check.remedy or check.name == "base image", check.name
        assert check.remedy == check.remedy.strip() and "of nothing" not in check.text, check


INFO = Info("native", 0, 1, (), True, True, 64, None, None, None, "none", ("limits",))


def test_what_a_sandbox_proves_is_ok_whatever_a_look_says() -> None:
    kernel = Check("kernel", False, "Linux 2.6.32", "install another", required=True)
    assert verdict.judged(kernel, {"bare": Tried(INFO)}).ok
    ids = Check("user ids", False, "your own id only")
    assert not verdict.judged(ids, {"bare": Tried(INFO)}).ok, "sandboxes work with one id, and less works in them"


def test_what_a_sandbox_failed_for_is_not_ok_and_what_comes_after_was_not_tried() -> None:
    tried = {"bare": Tried(said="it cannot be; do that", aspect="store")}
    looked = [Check(name, True, "there", "a remedy", required=True) for name in verdict.PROVED]
    told = {check.name: check for check in (verdict.judged(check, tried) for check in looked)}
    assert (told["store"].ok, told["store"].text, told["store"].remedy) == (False, "there; it cannot be; do that", "")
    assert (told["user ids"].text, told["seccomp"].text) == ("there", "there (not tried)")
    limit = Check("disk limit", True, "disk= works")
    assert verdict.judged(limit, tried).text == "disk= works (not tried)"
    assert verdict.judged(limit, {**tried, "disk limit": Tried(INFO)}) == limit
    assert verdict.sandboxes(tried) == [Check("sandbox", False, "none can be created; see store", required=True)]


def test_a_sandbox_without_limits_is_told_with_what_holds_it() -> None:
    first, second = verdict.sandboxes({"bare": Tried(INFO), "full": Tried(said="limits are missing")})
    assert (first.ok, first.required, first.text) == (False, True, "limits are missing")
    assert second.text.endswith("limits: 64 MiB; lacks limits")


def test_where_nothing_can_be_traced_no_chain_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """doctor ended with a traceback on a kernel without nf_tables."""
    monkeypatch.setattr(trace, "tool", lambda *names: "/bin/false")
    assert trace.dropper(tmp_path, ["10.0.0.1"]) == ""


def test_all_that_a_sandbox_cannot_have_is_told_at_once() -> None:
    def refuse(text: str) -> Callable[[], None]:
        def want() -> None:
            raise EngineError(text, aspect=text)

        return want

    host.require_all([lambda: None])
    with pytest.raises(EngineError) as caught:
        host.require_all([refuse("no network; do this"), lambda: None, refuse("no limits; do that")])
    assert str(caught.value) == "no network; do this; and no limits; do that"
    assert caught.value.aspect == "no network; do this"
