"""Start a job on several machines: the command line of mpirun or horovodrun, with what matters on it.

Called by mpirun.sh and horovodrun.sh; needs only the standard library. docs/clusters.md explains the options.

1. Hosts come from --hosts or --hostfile, with the number of ranks of each; ranks are placed host by host.
2. With --threads each rank is bound to so many cores of its own; without, ranks are not bound. (What mpirun does of
   itself is worse than both: up to two ranks a host are bound to one core each, with all the threads of a framework.)
3. mpirun takes only its own variables (OMPI_...) along to other hosts. All that Horovod, the frameworks and this
   package read is passed on by name, and so is the search path, for a remote shell that reads no profile.
4. With --interface every protocol is told: MPI's messages, MPI's control, Gloo, NCCL. Otherwise each picks
   an interface by itself, and one that goes nowhere (docker0, say) makes a job hang.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import command_line

PASSED_ON = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHON[A-Z]+"
    r"|(HOROVOD|HVD_COMPRESS|OMP|KMP|MKL|OPENBLAS|GLOO|NCCL|TF|TORCH|XLA|CUDA)_\w+"
)
OF_ONE_HOST = {"CUDA_VISIBLE_DEVICES"}
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
FAILED = 125  # the launcher itself failed, as with env, timeout and docker


class Failed(Exception):
    """The job could not be started; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Job:
    """What to run where."""

    hosts: tuple[tuple[str, int], ...]
    command: tuple[str, ...]
    threads: int | None = None
    interface: str | None = None

    @property
    def ranks(self) -> int:
        return sum(slots for _, slots in self.hosts)

    @property
    def host_list(self) -> str:
        return ",".join(f"{name}:{slots}" for name, slots in self.hosts)

    @property
    def binding(self) -> list[str]:
        if self.threads is None:
            return ["--bind-to", "none", "--map-by", "slot"]
        return ["--bind-to", "core", "--map-by", f"slot:PE={self.threads}"]

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What this sets, where the caller has not."""
        settings = {}
        if self.threads is not None:
            settings["OMP_NUM_THREADS"] = str(self.threads)
        if self.interface is not None:
            settings |= {"HOROVOD_GLOO_IFACE": self.interface, "NCCL_SOCKET_IFNAME": self.interface}
        return {name: value for name, value in settings.items() if name not in environment}

    def mpirun(self, program: Path, environment: Mapping[str, str]) -> list[str]:
        """The command. A full path tells mpirun where it is installed on the other hosts, too."""
        words = [str(program), "--host", self.host_list, "-np", str(self.ranks), *self.binding]
        if self.interface is not None:
            settings = {"pml": "ob1", "btl": "tcp,self,vader", "btl_tcp_if_include": self.interface}
            for name, value in (settings | {"oob_tcp_if_include": self.interface}).items():
                words += ["--mca", name, value]
        for name in sorted(set(environment) | set(self.variables(environment))):
            if PASSED_ON.fullmatch(name) and name not in OF_ONE_HOST:
                words += ["-x", name]
        return [*words, *self.command]

    def horovodrun(self, program: Path, gloo: bool) -> list[str]:
        """The command. Horovod passes all variables on by itself."""
        words = [str(program), "-np", str(self.ranks), "-H", self.host_list]
        if self.interface is not None:
            words += ["--network-interfaces", self.interface]
        if gloo:
            return [*words, "--gloo", *self.command]
        prefix = program.resolve().parent.parent
        # joined, for a value that begins with a dash
        return [
            *words,
            "--mpi",
            f"--binding-args={shlex.join(self.binding)}",
            f"--mpi-args=--prefix {shlex.quote(str(prefix))}",
            *self.command,
        ]


def parse_hosts(text: str) -> tuple[tuple[str, int], ...]:
    """Hosts and ranks of each.

    >>> parse_hosts("node1:2,node2")
    (('node1', 2), ('node2', 1))
    """
    return tuple(_host(*(item.rpartition(":")[::2] if ":" in item else (item, "1")), item) for item in text.split(","))


def read_hostfile(path: Path) -> tuple[tuple[str, int], ...]:
    """Hosts of a file in the form of Open MPI, of which Horovod understands the same: ``name slots=2`` on a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        if words := line.partition("#")[0].split():
            slots = "1" if len(words) == 1 else words[1].removeprefix("slots=")
            if len(words) > 2:
                raise Failed(f"{path}:{number}: {line.strip()!r} is not like: node1 slots=2")
            hosts.append(_host(words[0], slots, f"{path}:{number}: {line.strip()}"))
    if not hosts:
        raise Failed(f"{path} names no host")
    return tuple(hosts)


def _host(name: str, slots: str, item: str) -> tuple[str, int]:
    if not NAME.fullmatch(name) or not re.fullmatch(r"[1-9]\d{0,5}", slots, re.ASCII):
        raise Failed(f"{item!r} is not a host with a number of ranks, like node1:2 (in a file: node1 slots=2)")
    return name, int(slots)


def positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(launcher: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, Job]:
    """The options, and the job. Exits with status 2 if something is wrong with them."""
    parser = argparse.ArgumentParser(
        prog=f"launch/{launcher}.sh",
        usage="%(prog)s (--hosts HOST:N,... | --hostfile FILE) [options] -- program [arguments]",
        description=f"Run a program with {launcher} on several hosts. Its exit status is passed on; 125 is a failure "
        "of the launcher itself.",
        allow_abbrev=False,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hosts", metavar="HOST:N,...", help="hosts, and ranks on each")
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="the same, a line each: node1 slots=2")
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of a rank: each is bound to so many cores of its own (MPI only), OMP_NUM_THREADS says so; "
        "by default nothing is bound",
    )
    parser.add_argument("--interface", metavar="NAME", help="network interface, the same on all hosts: eth0, ib0 ...")
    if launcher == "horovodrun":
        parser.add_argument("--gloo", action="store_true", help="without MPI")
    parser.add_argument("--dry-run", action="store_true", help="print the command and do nothing")
    options, command = command_line.parse(parser, arguments)
    if options.interface is not None and not NAME.fullmatch(options.interface):
        parser.error(f"--interface {options.interface}: the name of an interface, like eth0")
    try:
        hosts = read_hostfile(options.hostfile) if options.hostfile else parse_hosts(options.hosts)
    except Failed as error:
        parser.error(str(error))
    return options, Job(hosts, tuple(command), options.threads, options.interface)


def main(launcher: str, arguments: Sequence[str]) -> None:
    """Become the launcher, or print what would."""
    options, job = parse(launcher, arguments)
    found = shutil.which(launcher)
    if found is None:
        raise Failed(f"{launcher} not found; run: make setup")
    settings = job.variables(os.environ)
    program = Path(found)
    words = job.mpirun(program, os.environ) if launcher == "mpirun" else job.horovodrun(program, options.gloo)
    if options.dry_run:
        for name, value in settings.items():
            print(f"export {name}={shlex.quote(value)}")
        print(shlex.join(words))
        return
    os.environ.update(settings)
    os.execv(found, words)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except (Failed, OSError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(FAILED)
