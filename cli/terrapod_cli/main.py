"""`terrapod`: the command line for people and scripts."""

import click

from terrapod_cli import exits
from terrapod_cli.audit import audit
from terrapod_cli.login import login, logout, whoami
from terrapod_cli.pools import pools
from terrapod_cli.roles import roles
from terrapod_cli.runs import runs
from terrapod_cli.states import states
from terrapod_cli.tokens import tokens
from terrapod_cli.users import users
from terrapod_cli.workspaces import workspaces
from terrapod_shared.operator_errors import Group

COMMANDS: tuple[click.Command, ...] = (
    login,
    logout,
    whoami,
    workspaces,
    runs,
    states,
    pools,
    tokens,
    users,
    roles,
    audit,
)


@click.group(
    cls=Group,
    commands=list(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"\b\nExit codes:\n{exits.table()}",
)
@click.version_option(package_name="terrapod")
def main() -> None:
    """Terrapod: remote runs and state for terraform and tofu.

    Sign in with `terrapod login HOST`; tokens of `terraform login`, TF_TOKEN_... variables and TERRAPOD_TOKEN work too.
    Every command takes --json.
    """


if __name__ == "__main__":
    main()
