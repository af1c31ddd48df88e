"""An engine that does what the configuration's own shell scripts say: for what a real terraform does not do on demand.

It is called as terraform is, takes the backend of the last override file as
terraform does, and prints its argv and folder. `init.sh`, `plan.sh` and
`apply.sh` of the configuration run in it, with STATE naming the state file.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: Above the floor, and below the real one, so that `latest` is never this.
VERSION = "1.6.1"
_PROGRAM = r"""#!{python} -IS
import json, os, re, signal, subprocess, sys
from pathlib import Path

argv = sys.argv[1:]
verb = argv[0]
signal.signal(signal.SIGINT, lambda *_: None)  # it is for the script
override = max(Path().glob("*_override.tf"), key=lambda path: path.name.encode()).read_text()
states = json.loads(re.search(r'workspace_dir = (".*")', override)[1])
default = json.loads(re.search(r' path = (".*")', override)[1])
state = Path(states) / os.environ["TF_WORKSPACE"] / "terraform.tfstate"


def script():
    if verb in ("init", "plan", "apply"):
        print("called", json.dumps([*argv, os.getcwd()]), flush=True)
    if Path(verb + ".sh").exists():
        code = subprocess.call(["/bin/sh", verb + ".sh"], env=dict(os.environ, STATE=str(state)))
        if code:
            sys.exit(code)


script()
if verb == "init":
    Path(".terraform").mkdir(exist_ok=True)
    backend = dict(type="local", config=dict(workspace_dir=states, path=default))
    Path(".terraform/terraform.tfstate").write_text(json.dumps(dict(backend=backend)))
elif verb == "plan":
    out = next(word.partition("=")[2] for word in argv if word.startswith("-out="))
    Path(out).write_text("a plan")
elif verb == "show":
    assert Path(argv[-1]).read_text() == "a plan"
    print(json.dumps(dict(format_version="1.2", applyable=True, complete=True, resource_changes=[])))
elif verb == "providers":
    print(json.dumps(dict(format_version="1.0", provider_schemas=dict())))
elif verb == "apply":
    assert Path(argv[-1]).read_text() == "a plan"
"""


def program(folder: Path, name: str = "scripted") -> Path:
    """Writes the program."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(_PROGRAM.replace("{python}", sys.executable))
    path.chmod(0o755)
    return path


#: A program of machine code, as a host's own terraform is one: it hands its words to the script, and says its version.
_LAUNCHER = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char *words[256] = {PYTHON, "-ISc", SCRIPT};
    if (argc == 2 && !strcmp(argv[1], "version")) return WAITS ? pause() : puts(SAYS) < 0;
    for (int i = 1; i < argc && i < 250; i++) words[i + 2] = argv[i];
    execv(words[0], words);
    return 127;
}
"""


def binary(path: Path, says: str = f"Terraform v{VERSION}\non linux_amd64\n", *, waits: bool = False) -> Path:
    """Compiles the program; one that `waits` never says its version. Skips the test where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, so there is no program of machine code")
    script = _PROGRAM.partition("\n")[2]
    values = {"PYTHON": sys.executable, "SCRIPT": script, "SAYS": says}
    names = [f"-D{name}={json.dumps(value)}" for name, value in values.items()] + [f"-DWAITS={int(waits)}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", *names, "-x", "c", "-o", path, "-"], input=_LAUNCHER, text=True, check=True)
    return path
