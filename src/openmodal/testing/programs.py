"""What programs take for granted on any Linux machine: their streams by name, odd variables, long arguments, their folder, loopback."""

from __future__ import annotations

import pytest

from openmodal.errors import InvalidError
from openmodal.image import Image
from openmodal.sandbox import Sandbox
from openmodal.testing.fixtures import Create, promise

_BY_NAME = "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr"


class TestPrograms:
    @promise("users")
    @pytest.mark.parametrize("user", ["root", "agent", "agent:staff", "4321"])
    def test_any_user_opens_his_own_streams_by_name(self, sandbox: Sandbox, user: str) -> None:
        process = sandbox.exec("sh", "-c", _BY_NAME, stdin="in\n", user=user)
        assert (process.stdout.read(), process.stderr.read()) == ("in\nout\n", "err\n")
        spawned = sandbox.spawn("sh", "-c", _BY_NAME, user=user)
        spawned.stdin.write("in\n")
        spawned.stdin.close()
        assert spawned.wait() == 0, spawned.stderr.read()
        assert (spawned.stdout.read(), spawned.stderr.read()) == ("in\nout\n", "err\n")

    @promise("users")
    def test_any_user_opens_his_own_terminal_by_name(self, sandbox: Sandbox) -> None:
        process = sandbox.spawn("sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr", user="agent", pty=True)
        assert process.wait() == 0
        assert process.stdout.read() == "out\r\nerr\r\n"

    @promise("users")
    def test_the_main_command_of_an_image_with_a_user_opens_its_streams_by_name(
        self, create: Create, image: Image
    ) -> None:
        sandbox = create("sh", "-c", "id -u > /dev/stdout; echo err > /dev/stderr", image=image.user("agent"))
        assert sandbox.wait() == 0
        assert (sandbox.stdout.read(), sandbox.stderr.read()) == ("1000\n", "err\n")

    def test_variables_have_any_name_but_for_equals_signs(self, sandbox: Sandbox) -> None:
        names = ["a.b", "npm_config_@scope:registry", "with-dash and space", "ü", "1", "%", "new\nline"]
        process = sandbox.exec("env", "-0", env=dict.fromkeys(names, "=value\n"))
        if process.returncode:  # a busybox without -0
            process = sandbox.exec("cat", "/proc/self/environ", env=dict.fromkeys(names, "=value\n"))
        assert {f"{name}==value\n" for name in names} <= set(process.stdout.read().split("\0"))

    def test_variables_of_images_have_odd_names_too(self, create: Create, image: Image) -> None:
        names = ["a.b", "npm_config_@scope:registry", "with-dash and space", "ü", '"$quoted\\"']
        sandbox = create(image=image.env(dict.fromkeys(names, "$value")))
        said = sandbox.exec("cat", "/proc/self/environ").stdout.read().split("\0")
        assert {f"{name}=$value" for name in names} <= set(said)

    def test_arguments_are_as_long_as_linux_takes_them(self, sandbox: Sandbox) -> None:
        longest = "x" * ((128 << 10) - 1)
        process = sandbox.exec("printf", "%s", longest)
        assert process.stdout.read() == longest, process.stderr.read()
        count = (2 << 20) // (128 << 10) - 1
        process = sandbox.exec("printf", "%s", *[longest] * count)
        assert len(process.stdout.read()) == count * len(longest), process.stderr.read()

    def test_variables_are_as_long_as_linux_takes_them(self, sandbox: Sandbox) -> None:
        value = "x" * ((128 << 10) - 3)
        process = sandbox.exec("sh", "-c", "echo ${#A} ${#B}", env={"A": value, "B": value})
        assert process.stdout.read() == f"{len(value)} {len(value)}\n", process.stderr.read()

    def test_a_main_command_has_long_arguments_too(self, create: Create) -> None:
        longest = "x" * ((128 << 10) - 1)
        sandbox = create("sh", "-c", 'echo "$#" "${#10}"', "sh", *[longest] * 10)
        assert sandbox.wait() == 0
        assert sandbox.stdout.read() == f"10 {len(longest)}\n"

    def test_a_relative_workdir_counts_from_the_sandboxs(self, sandbox: Sandbox) -> None:
        sandbox.exec("mkdir", "/srv/below")
        assert sandbox.exec("pwd", workdir="below").stdout.read() == "/srv/below\n"
        assert sandbox.exec("pwd", workdir="../home").stdout.read() == "/home\n"
        with pytest.raises(InvalidError, match="not-there"):
            sandbox.exec("pwd", workdir="not-there")

    def test_the_sandboxs_own_relative_workdir_counts_from_the_images(self, create: Create) -> None:
        sandbox = create("sh", "-c", "pwd; cat", workdir="below/this")
        assert sandbox.exec("pwd").stdout.read() == "/srv/below/this\n"
        sandbox.filesystem.write_text("file", "text")
        assert sandbox.filesystem.read_text("/srv/below/this/file") == "text"
        assert sandbox.stdout.readline() == "/srv/below/this\n"

    def test_relative_paths_of_files_count_from_the_sandboxs_workdir(self, sandbox: Sandbox) -> None:
        files = sandbox.filesystem
        files.write_text("folder/file", "text")
        assert files.read_text("/srv/folder/file") == files.read_text("./folder/../folder/file") == "text"
        files.rename("folder/file", "folder/other")
        assert [(info.path, info.name) for info in files.list_files("folder")] == [("folder/other", "other")]
        assert sandbox.exec("cat", "folder/other").stdout.read() == "text"
        files.make_directory("made")
        files.remove("folder", recursive=True)
        assert [info.path for info in files.list_files(".")] == ["./made"]

    def test_what_could_not_be_started_has_the_process_id_0(self, sandbox: Sandbox) -> None:
        for name in ("no-such-command", "/etc/passwd"):
            assert sandbox.exec(name).pid == 0
            assert sandbox.spawn(name).pid == 0
        assert sandbox.exec("true").pid > 1

    @promise("users")
    def test_an_id_that_the_sandbox_cannot_have_is_named(self, sandbox: Sandbox) -> None:
        for user in ("4294967294", "0:4294967294"):
            try:
                said = sandbox.exec("sh", "-c", "echo $(id -u):$(id -g)", user=user).stdout.read()
            except InvalidError as error:  # but for engines that have it
                said = str(error)
            assert "4294967294" in said

    @promise("loopback6")
    def test_all_addresses_of_localhost_can_be_served(self, sandbox: Sandbox) -> None:
        hosts = [line.split() for line in sandbox.filesystem.read_text("/etc/hosts").splitlines()]
        addresses = [words[0] for words in hosts if "localhost" in words[1:]]
        assert "127.0.0.1" in addresses
        for address in addresses:
            place = f"[{address}]:8099" if ":" in address else f"{address}:8099"
            served = sandbox.spawn("httpd", "-f", "-p", place, "-h", "/etc")
            fetch = f"for n in 1 2 3 4 5 6 7 8 9; do wget -q -O- http://{place}/passwd && exit; sleep 0.2; done; exit 1"
            assert sandbox.exec("sh", "-c", fetch).returncode == 0, (address, served.poll())
            served.kill()


__all__ = ["TestPrograms"]
