"""An engine that does what the configuration's own shell scripts say: for what a real terraform does not do on demand.

It is called as terraform is, takes the backend of the last override file as
terraform does, and prints its argv and folder. `init.sh`, `plan.sh` and
`apply.sh` of the configuration run in it, with STATE naming the state file.
"""

import sys
from pathlib import Path

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
