"""Private modules with the real terraform: at the user's, and inside runs by the run's own token."""

import re
import shutil
import ssl
import uuid

import httpx
import pytest

from kit.serving import tar
from kit.site import Site

MODULES = "/organizations/default/registry-modules"


#: Terraform takes no host without a dot for a registry.
HOST = "127.0.0.1"


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def publish(site: Site, name: str, **versions: str) -> None:
    """Publishes versions of a module (`v1_0_0`), each with this text as its main.tf."""
    trusted = ssl.create_default_context(cafile=site.data / "ca.pem")
    headers = {"Authorization": f"Bearer {site.token}"}
    with httpx.Client(base_url=f"https://{site.host}/api/v2/", headers=headers, verify=trusted) as api:
        attributes = {"name": name, "provider": "local"}
        made = api.post(MODULES, json={"data": {"type": "registry-modules", "attributes": attributes}})
        assert made.status_code == 201, made.text
        for version, text in versions.items():
            body = {"data": {"attributes": {"version": version[1:].replace("_", ".")}}}
            announced = api.post(f"{MODULES}/private/default/{name}/local/versions", json=body)
            assert announced.status_code == 201, announced.text
            files = {"main.tf": text.encode(), "modules/inner/main.tf": b'output "depth" { value = "inner" }\n'}
            with httpx.Client(verify=trusted) as anybody:
                landed = anybody.put(announced.json()["data"]["links"]["upload"], content=tar(files))
            assert landed.status_code == 200, landed.text


def word(text: str) -> str:
    return f'output "word" {{ value = "{text}" }}\n'


@pytest.fixture
def published(site: Site) -> str:
    """The name of a module in three versions; the newest of 1.x uses another private module."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    publish(site, f"{name}-base", v0_1_0=word("base"))
    nested = f'module "base" {{ source = "{HOST}:{site.port}/default/{name}-base/local" }}\n'
    publish(site, name, v1_0_0=word("old"), v1_10_0=nested + word("new ${module.base.word}"), v2_0_0=word("newest"))
    return name


def uses(site: Site, name: str) -> str:
    return f"""
module "net" {{
  source  = "{HOST}:{site.port}/default/{name}/local"
  version = "~> 1.0"
}}
module "inner" {{
  source  = "{HOST}:{site.port}/default/{name}/local//modules/inner"
  version = "1.0.0"
}}
resource "terraform_data" "a" {{ input = "${{module.net.word}} ${{module.inner.depth}}" }}
output "a" {{ value = terraform_data.a.output }}
"""


@pytest.mark.parametrize("block", ["cloud", "remote"])
def test_private_modules_work_inside_a_run(site: Site, published: str, block: str) -> None:
    make = site.example if block == "cloud" else site.remote
    folder = make(f"{published}-{block}", uses(site, published))
    # the run is to fetch them itself: what is not sent cannot be used
    (folder / ".terraformignore").write_text(".terraform/\n")
    fetching = f"Downloading {HOST}:{site.port}/default/{published}/local 1.10.0 for net"
    assert fetching in plain(site.ok(folder, "init"))
    planned = plain(site.ok(folder, "plan"))
    assert fetching in planned, "the run's own init fetched it"
    assert f"{published}-base/local 0.1.0 for net.base" in planned
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    assert "1 added" in applied
    assert site.ok(folder, "output", "-raw", "a") == "new base inner"


def test_without_a_token_init_says_why(site: Site, published: str) -> None:
    folder = site.example(f"{published}-local", uses(site, published), head=" ")
    done = site.run(folder, "init", TF_CLI_CONFIG_FILE="/dev/null")
    assert done.code == 1
    assert "error looking up module versions: 401" in " ".join(plain(done.out).split())
    unknown = site.example(f"{published}-unknown", uses(site, f"{published}-x"), head=" ")
    done = site.run(unknown, "init")
    assert done.code == 1
    assert "Module not found" in plain(done.out)


ASK = r"""
token=$(sed -n 's/.*token = "\(.*\)"/\1/p' "$TF_CLI_CONFIG_FILE" | head -n 1)
echo mode=$(stat -c %a "$TF_CLI_CONFIG_FILE") folder=$(stat -c %a "$(dirname "$TF_CLI_CONFIG_FILE")")
echo in the environment: $(env | grep -c tpod)
for path in registry/modules/default/MODULE/local/versions organizations/default/registry-modules \
    organizations/default/workspaces account/details; do
  code=$(curl -s -o /dev/null -w '%{http_code}' --cacert "$SSL_CERT_FILE" -H "Authorization: Bearer $token" "URL/$path")
  echo "$path=$code"
done
"""


@pytest.mark.skipif(not shutil.which("curl"), reason="the run asks the server by curl: apt-get install curl")
def test_the_runs_credentials_are_its_own_and_open_nothing_else(site: Site, published: str) -> None:
    body = 'resource "terraform_data" "a" {\n  provisioner "local-exec" { command = "sh ask.sh" }\n}\n'
    folder = site.example(f"{published}-sh", body)
    (folder / "ask.sh").write_text(ASK.replace("MODULE", published).replace("URL", f"https://{site.host}/api/v2"))
    site.ok(folder, "init")
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    for said in ("mode=600 folder=700", "in the environment: 0",
                 f"registry/modules/default/{published}/local/versions=200", "default/registry-modules=403",
                 "default/workspaces=403", "account/details=403"):  # fmt: skip
        assert said in applied, applied
