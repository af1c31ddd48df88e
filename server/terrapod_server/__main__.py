"""`terrapod-server`: the group of commands. Each is imported when it is called, so that `--help` is there at once."""

import importlib

import click

from terrapod_shared import operator_errors

#: Of each command its module, and what the help of the group says of it.
COMMANDS = {
    "audit": ("audit", "The record of who changed what."),
    "binaries": ("binaries", "The cache of terraform and tofu binaries."),
    "check": ("check", "Check the settings, and report every mistake at once."),
    "install-service": ("install_service", "Make this a service of systemd."),
    "keys": ("keys", "The keys that encrypt at rest."),
    "serve": ("serve", "Serve the API in production."),
    "tokens": ("tokens", "API tokens, made on the server's host."),
    "up": ("up", "Start a server, and one listener, for one host."),
    "users": ("users", "Accounts with a password of this server."),
}


class _Commands(operator_errors.Group):
    """Commands by name, of which only the one that is called is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"terrapod_server.commands.{COMMANDS[cmd_name][0]}")
        except ModuleNotFoundError as missing:
            raise operator_errors.missing_extra("terrapod-server", "server", missing) from None
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in sorted(COMMANDS.items())])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="terrapod")
def main() -> None:
    """The Terrapod control server: remote runs and state for terraform and tofu."""


if __name__ == "__main__":
    main()
