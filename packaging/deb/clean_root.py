"""Runs the README's commands on a minimal Debian: `make clean-root RELEASE=trixie`. Needs root and debootstrap.

debootstrap makes the root once and a cache keeps it. Each run unpacks it into a
new folder, clones the committed tree into it, and enters it in namespaces of
its own: /proc, /sys and /dev/pts are there, and / is a mount point, so that
isolation (bubblewrap, users) works as on a real host. The network is the host's.

No mount is visible outside of those namespaces. The kernel takes all of them
away, and ends every program inside, when the last process ends or this one is
killed, so removing the folder never reaches through a mount.

Nothing but the standard library is used: this runs before `make setup`.
"""

import argparse
import configparser
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

TREE = Path(__file__).parents[2]
#: What README.md asks for, and what any host with HTTPS has.
PACKAGES = "make,python3,python3-venv,ca-certificates"
TO_ENTER = {"unshare": "util-linux", "setpriv": "util-linux", "pivot_root": "util-linux", "mount": "mount"}
TO_MAKE = {"debootstrap": "debootstrap", "tar": "tar", "git": "git"}
CLONE = "root/terrapod"
PREFIX = "terrapod-clean-root-"
KEPT = ".kept"
#: A container's or a virtual machine's own; the rest of the host's environment stays outside.
_PASSED = re.compile(r"PIP_\w+|\w+_proxy|\w+_PROXY|TERM|COLUMNS|LINES|TZ")
#: Where listeners that are root lock the users of their runs. A user of the host's is the same to the kernel as that of the
#: root, and a listener kills what its run's user has left behind: without these locks, runs in the root too.
USERS = Path("/run/terrapod-users")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


class Failed(Exception):
    """A step failed; the text says which and why."""


def say(text: str) -> None:
    print(f"clean-root: {text}", flush=True)


def call(*argv: str, **options: str) -> str:
    """Runs a command and returns its output. Raises Failed with the end of it."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "LC_ALL": "C", **options},
    )  # fmt: skip
    if done.returncode:
        message = f"{shlex.join(argv[:4])} ... ended with {done.returncode}:\n{done.stdout[-2000:]}"
        raise Failed(message)
    return done.stdout


def call_in_namespaces(argv: Sequence[str], output: IO[str] | None = None) -> int:
    """Runs a command in mount and process namespaces of its own; the exit code. All of them are gone when this returns.

    Nobody is left behind even where this process is killed: the first program inside ends with it, and all others with that.
    """
    own = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child=KILL"]
    process = subprocess.Popen(
        [*own, "--propagation", "private", *argv], stdout=output, stderr=output and subprocess.STDOUT
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            # unshare ends when the first program of the namespaces does, and that one when all others have ended
            children = Path("/proc", str(process.pid), "task", str(process.pid), "children").read_text().split()
            for child in children or [str(process.pid)]:
                os.kill(int(child), signal.SIGKILL)
            process.wait()


# -- the host: its sources of packages, and how its pip is set up


def codename() -> str:
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line).get("VERSION_CODENAME", "").strip('"')


def sources(release: str) -> list[tuple[str, str]]:
    """Archive and suite of the host's own Debian sources, for another release; none where the host is not Debian."""
    if not shutil.which("apt-get"):
        return []
    told = call("apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)", "Created-By: Packages")
    own, found = codename(), []
    for line in told.splitlines():
        origin, _, rest = line.partition("|")
        address, _, suite = rest.partition("|")
        if origin == "Debian" and suite.split("-")[0] == own:
            found.append((address, suite.replace(own, release, 1)))
    return list(dict.fromkeys(found))


def apt_settings() -> str:
    """The host's settings about proxies and certificates, as apt prints them."""
    if not shutil.which("apt-config"):
        return ""
    wanted = re.compile(r"Acquire::https?::.*(Proxy|CaInfo|Verify)", re.IGNORECASE)
    return "".join(f"{line}\n" for line in call("apt-config", "dump").splitlines() if wanted.match(line))


def pip_files() -> list[Path]:
    """Configuration files of the host's pip, for all users and for this one."""
    home = Path("~").expanduser()
    listed = [
        *(Path(folder, "pip/pip.conf") for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")),
        Path("/etc/pip.conf"), home / ".config/pip/pip.conf", home / ".pip/pip.conf",
        *([Path(os.environ["PIP_CONFIG_FILE"])] if os.environ.get("PIP_CONFIG_FILE") else []),
    ]  # fmt: skip
    return [path for path in dict.fromkeys(listed) if path.is_file()]


def named_places(files: Sequence[Path], environment: Mapping[str, str]) -> list[Path]:
    """Files and folders of this host that pip's settings name: certificates, constraints, folders of wheels."""
    values = [value for name, value in environment.items() if name.startswith("PIP_")]
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            message = f"{file} cannot be read: {error}"
            raise Failed(message) from None
        values += [value for section in parser.sections() for _, value in parser.items(section)]
    words = [word.removeprefix("file://") for value in values for word in value.split()]
    found = [Path(word) for word in words if word.startswith("/") and len(Path(word).parts) > 1]
    # the pages of an index on this disk lead to files beside its folder, which is named `simple`
    found = [path.parent if path.name == "simple" and len(path.parts) > 2 else path for path in found]
    return [path for path in dict.fromkeys(found) if path.exists() and path not in files]


# -- the root: made once, unpacked for each run


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    folder = Path(base) / "terrapod" / "clean-root"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def base_archive(release: str, *, is_fresh: bool) -> Path:
    """The cached root as a tar archive, made by debootstrap where it is not there yet."""
    folder = cache_folder()
    machine = call("dpkg", "--print-architecture").strip() if shutil.which("dpkg") else os.uname().machine
    archive = folder / f"{release}-{machine}.tar"
    with (folder / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists() and not is_fresh:
            days = int((time.time() - archive.stat().st_mtime) // 86400)
            say(f"the base root of {release} is {days} days old ({archive}; --fresh makes it again)")
            return archive
        with own_folder() as root:
            say(f"debootstrap makes a base root of {release}, which takes some minutes")
            # the first address is the archive, others are updates; debootstrap knows one itself
            address = [address for address, suite in sources(release) if suite == release][:1]
            own = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, str(root), *address]
            log = root.parent / "log"
            with log.open("w") as output:
                code = call_in_namespaces(own, output)
            if code:
                message = f"debootstrap ended with {code}:\n{log.read_text()[-2000:]}"
                raise Failed(message)
            root.chmod(0o755)
            part = archive.with_suffix(".part")
            call("tar", "-C", str(root), "--xattrs", "-cf", str(part), ".")
            part.replace(archive)
    return archive


@contextlib.contextmanager
def own_folder(kept: Path | None = None, *, is_kept: bool = False) -> Iterator[Path]:
    """A root's folder inside one that only root can enter: removed at the end, or one that an earlier run kept."""
    place = kept or Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
    with locked(place) as is_ours:
        if not is_ours:
            message = f"{place} is in use by another run"
            raise Failed(message)
        try:
            (place / "root").mkdir(exist_ok=True)
            if is_kept:
                (place / KEPT).touch()
            yield place / "root"
        finally:
            if not is_kept and kept is None:
                remove(place)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether the folder's lock was free; it is held until the end, even if this process is killed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Deletes a root. Raises Failed if anything is mounted in it, and deletes nothing then."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [point for point in mounted if point == str(folder) or point.startswith(f"{folder}/")]
    if inside:
        message = f"{folder} is not removed, because something is mounted there: {' '.join(inside)}"
        raise Failed(message)
    shutil.rmtree(folder)


def remove_leftovers() -> None:
    """Deletes the roots of runs that were killed."""
    for folder in Path("/var/tmp").glob(f"{PREFIX}*"):  # noqa: S108  made by mkdtemp
        if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid or (folder / KEPT).exists():
            continue
        with locked(folder) as is_ours:
            if is_ours:
                say(f"removing {folder}, which a run that was killed left")
                remove(folder)


def furnish(root: Path, release: str) -> None:
    """What an installed Debian has beside its packages: names, sources, and the way out to both."""
    (root / "etc/hosts").write_text(_HOSTS)
    (root / "etc/hostname").write_text("clean-root\n")
    for name in ("resolv.conf", "hosts"):
        own = Path("/etc", name)
        if own.is_file():
            (root / "etc" / name).unlink(missing_ok=True)
            shutil.copyfile(own, root / "etc" / name)
    listed = sources(release)
    if listed:
        lines = [f"deb {address} {suite} main\n" for address, suite in listed]
        (root / "etc/apt/sources.list").write_text("".join(lines))
    (root / "etc/apt/apt.conf.d/90host").write_text(apt_settings())


def clone(root: Path) -> str:
    """Clones what is committed, and returns the commit."""
    if call("git", "-C", str(TREE), "status", "--porcelain").strip():
        say("uncommitted changes are left out: the clone has what is committed")
    commit = call("git", "-C", str(TREE), "rev-parse", "HEAD").strip()
    call("git", "clone", "--quiet", "--no-local", "--no-checkout", str(TREE), str(root / CLONE))
    call("git", "-C", str(root / CLONE), "checkout", "--quiet", "--detach", commit)
    return commit


# -- inside: to be called in namespaces of its own


def mount(*argv: str) -> None:
    call("mount", *argv)


def bind(source: Path, root: Path, *, is_read_only: bool = True) -> None:
    """Shows a file or folder of the host at the same place in the root."""
    place = root / source.relative_to("/")
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    mount("--bind", str(source), str(place))
    if is_read_only:
        mount("-o", "remount,bind,ro", str(place))


def show_pip_settings(root: Path) -> None:
    """The host's pip configuration, read-only; nothing of it stays in a root that is kept, but certificates' copies."""
    files = pip_files()
    home = Path("~").expanduser()
    for file in files:
        place = Path("/root") / file.relative_to(home) if file.is_relative_to(home) else file
        (root / place.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / place.relative_to("/")).touch()
        mount("--bind", str(file), str(root / place.relative_to("/")))
    for path in named_places(files, os.environ):
        place = root / path.relative_to("/")
        if path.is_dir() or not place.exists():
            bind(path.resolve() if path.is_symlink() else path, root)
        else:  # a file of a package of the root, such as the bundle of certificates: that package may replace it
            shutil.copyfile(path, place)
    cache = cache_folder() / "pip"
    cache.mkdir(exist_ok=True)
    place = root / "root/.cache/pip"
    place.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(cache), str(place))


def enter(root: Path, script: str) -> None:
    """Makes the folder the root of this mount namespace and becomes bash there, which reaps what is left behind."""
    mount("--bind", str(root), str(root))
    mount("-o", "remount,bind,suid,dev,exec", str(root))
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-t", "sysfs", "sysfs", str(root / "sys"))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "run"))
    USERS.mkdir(mode=0o700, exist_ok=True)
    bind(USERS, root, is_read_only=False)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev"))
    for name in _DEVICES:
        (root / "dev" / name).touch()
        mount("--bind", f"/dev/{name}", str(root / "dev" / name))
    for name, target in _LINKS.items():
        (root / "dev" / name).symlink_to(target)
    for name in ("pts", "shm"):
        (root / "dev" / name).mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", str(root / "dev/pts"))
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "dev/shm"))
    show_pip_settings(root)
    environment = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
    environment |= {
        "HOME": "/root",
        "USER": "root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    (root / ".host").mkdir(exist_ok=True)
    call("pivot_root", str(root), str(root / ".host"))
    os.chdir("/")
    script = f"umount -l /.host && rmdir /.host || exit 1\n{script}\nexit $?"
    os.execve("/bin/bash", ["bash", "-c", script], environment)  # noqa: S606  bash is the program


def script_of(options: argparse.Namespace, release: str) -> str:
    """What bash does in the root."""
    lines = [f"cd /{CLONE}"]
    if options.shell:
        return "\n".join([*lines, options.shell])
    for command in options.commands.split():
        lines += [
            f"echo 'clean-root: {release}: make {command}'", "begun=$SECONDS",
            f"make {command}; code=$?",
            f'echo "clean-root: {release}: make {command} ended with $code after $((SECONDS - begun)) s"',
            "[ $code = 0 ] || exit $code",
        ]  # fmt: skip
    return "\n".join(lines)


# -- outside


def run_in_root(root: Path, release: str, script: str) -> int:
    """The exit code of the script; everything that it started has ended."""
    return call_in_namespaces([sys.executable, __file__, release, "--inside", str(root), "--shell", script])


def play(options: argparse.Namespace, release: str) -> int:
    """Runs what was asked for in one root; the exit code."""
    script = script_of(options, release)
    if options.root:
        with own_folder(options.root) as root:
            return run_in_root(root, release, script)
    archive = base_archive(release, is_fresh=options.fresh)
    with own_folder(is_kept=options.keep) as root:
        call("tar", "-C", str(root), "--xattrs", "-xpf", str(archive))
        furnish(root, release)
        say(f"{release}: a clone of {clone(root)[:12]} in {root / CLONE}")
        code = run_in_root(root, release, script)
        if options.keep:
            again = f"{shlex.quote(__file__)} {release} --root {root.parent} --shell bash"
            say(f"kept; enter it by: python3 {again}")
        return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("release", nargs="+", help="of Debian: bookworm, trixie")
    parser.add_argument("--commands", default="demo test", help="targets of make, one after the other (demo test)")
    parser.add_argument("--shell", metavar="LINE", help="run this line of shell in the clone instead")
    parser.add_argument("--keep", action="store_true", help="leave the root where it is, and say where")
    parser.add_argument("--root", type=Path, metavar="DIR", help="enter a root that was kept instead of making one")
    parser.add_argument("--fresh", action="store_true", help="let debootstrap make the base root again")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.inside:
            enter(options.inside, options.shell)
        for release in options.release:
            if not re.fullmatch(r"[a-z]+", release):
                message = f"{release!r} is no name of a release, such as bookworm or trixie"
                raise Failed(message)
        if os.geteuid() != 0:
            message = "only root can make and enter a root: sudo make clean-root"
            raise Failed(message)
        needed = TO_ENTER if options.root else TO_ENTER | TO_MAKE
        missing = sorted({package for tool, package in needed.items() if not shutil.which(tool)})
        if missing:
            message = f"apt-get install {' '.join(missing)}"
            raise Failed(message)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through every finally
        remove_leftovers()
        codes = {release: play(options, release) for release in options.release}
    except Failed as error:
        print(f"clean-root: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    for release, code in codes.items():
        say(f"{release}: {'passed' if code == 0 else f'failed with {code}'}")
    return max(codes.values(), key=abs)


if __name__ == "__main__":
    sys.exit(main())
