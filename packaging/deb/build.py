"""Makes dist/terrapod_VERSION_ARCH.deb from the wheel: `make deb`. Needs dpkg-deb, and pip with a registry.

The package holds a virtual environment at /usr/lib/terrapod with everything
but Python itself. Its libraries are compiled for one minor version of Python,
which the package depends on: that of the interpreter which runs this.
"""

import compileall
import hashlib
import importlib.metadata
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PREFIX = Path("usr/lib/terrapod")
PROGRAMS = {
    "terrapod": "terrapod_cli.main",
    "terrapod-server": "terrapod_server.__main__",
    "terrapod-listener": "terrapod_listener.__main__",
}
CONTROL = """\
Package: terrapod
Version: {version}
Architecture: {arch}
Maintainer: Terrapod <terrapod@localhost>
Installed-Size: {size}
Depends: python3 (>= {minor}), python3 (<< {next}), libc6 (>= 2.34), \
systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles
Recommends: ca-certificates
Suggests: bubblewrap, nginx, postgresql
Section: admin
Priority: optional
Description: {about}
 The server keeps workspaces, state, variables and runs, and speaks the TFE v2
 API. Listeners on other hosts join it and run plan and apply.
 .
 Both are services of systemd; neither is started by the installation.
"""


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def run(*argv: str | Path, **environment: str) -> None:
    subprocess.run(argv, check=True, env={**os.environ, **environment})


def wheel(folder: Path) -> Path:
    """Built from this source."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    return next(folder.glob("terrapod-*.whl"))


def install_python(tree: Path, built: Path) -> None:
    """The environment with the wheel and all that it needs, in the versions of the lock."""
    home = tree / PREFIX
    packages = home / "lib" / PYTHON / "site-packages"
    packages.mkdir(parents=True)
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--root-user-action=ignore", "--only-binary=:all:", "--constraint", ROOT / "requirements-dev.lock",
        "--target", packages, f"{built}[server,s3,saml]",
    )  # fmt: skip
    shutil.rmtree(packages / "bin", ignore_errors=True)
    for place in packages.glob("terrapod-*.dist-info/direct_url.json"):  # where it was built is nobody's business
        place.unlink()
    # What it was compiled from is found by its hash, or dpkg's times would make each start compile it again.
    compileall.compile_dir(
        packages, quiet=2, stripdir=str(tree), prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"/usr/bin/{PYTHON}")
    (tree / "usr" / "bin").mkdir()
    for name, module in PROGRAMS.items():
        script = home / "bin" / name
        script.write_text(
            f"#!/{PREFIX}/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
        (tree / "usr" / "bin" / name).symlink_to(f"../lib/terrapod/bin/{name}")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def install_files(tree: Path) -> None:
    """Units, users, folders, settings and documents."""
    for folder, target in (
        ("systemd", "usr/lib/systemd/system"), ("sysusers.d", "usr/lib/sysusers.d"), ("tmpfiles.d", "usr/lib/tmpfiles.d")
    ):  # fmt: skip
        for file in sorted((ROOT / "packaging" / folder).iterdir()):
            is_drop_in = folder == "systemd" and file.suffix == ".conf"
            copy(file, tree / ("usr/share/terrapod" if is_drop_in else target) / file.name)
    copy(HERE / "server.toml", tree / "etc" / "terrapod" / "server.toml")
    about = tree / "usr" / "share" / "doc" / "terrapod"
    for file in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        copy(file, about / file.relative_to(ROOT))
    copy(ROOT / "LICENSE", about / "copyright")
    copy(ROOT / "packaging" / "nginx" / "terrapod.conf", about / "examples" / "nginx.conf")


def control(tree: Path, version: str, about: str) -> None:
    folder = tree / "DEBIAN"
    folder.mkdir()
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}"
        for path in files
    ]
    (folder / "md5sums").write_text(
        "\n".join(line for line in sums if not line.partition("  ")[2].startswith("etc/")) + "\n"
    )
    (folder / "conffiles").write_text("/etc/terrapod/server.toml\n")
    size = sum(path.stat().st_size for path in files) // 1024
    major, minor = sys.version_info[:2]
    arch = output("dpkg", "--print-architecture")
    text = CONTROL.format(
        version=version, arch=arch, size=size, minor=f"{major}.{minor}", next=f"{major}.{minor + 1}", about=about
    )
    (folder / "control").write_text(text)
    for name in ("postinst", "prerm", "postrm"):
        shutil.copyfile(HERE / name, folder / name)
        (folder / name).chmod(0o755)


def main() -> None:
    about = importlib.metadata.metadata("terrapod")
    version, arch = about["Version"], output("dpkg", "--print-architecture")
    target = ROOT / "dist" / f"terrapod_{version}_{arch}.deb"
    target.parent.mkdir(exist_ok=True)
    changed = output("git", "-C", str(ROOT), "log", "-1", "--format=%ct") if (ROOT / ".git").exists() else "0"
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir(mode=0o755)
        install_python(tree, wheel(Path(folder)))
        install_files(tree)
        control(tree, version, about["Summary"])
        run(
            "dpkg-deb",
            "--root-owner-group",
            "--build",
            tree,
            target,
            SOURCE_DATE_EPOCH=os.environ.get("SOURCE_DATE_EPOCH", changed),
        )
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
