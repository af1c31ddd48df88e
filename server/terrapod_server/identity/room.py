"""The room of accounts, tokens and sessions, and of the ways to sign in."""

from terrapod_server.identity import api, auth_api, jobs, oauth, oauth_api, pages, ports, rules
from terrapod_server.identity.signin.providers import SIGN_IN
from terrapod_server.kit.room import Room
from terrapod_server.kit.services import Services


async def _start(services: Services) -> None:
    services.authenticator.start()


async def _stop(services: Services) -> None:
    await services.authenticator.stop()
    await services.ask(SIGN_IN).close()


ROOM = Room(
    name="identity",
    tag=("identity", "accounts, tokens, sessions, and the ways to sign in"),
    models=("model",),
    resources=(*api.RESOURCES, *auth_api.RESOURCES),
    endpoints=(*api.ENDPOINTS, *auth_api.ENDPOINTS, *oauth_api.ENDPOINTS),
    pages=pages.PAGES,
    jobs=jobs.JOBS,
    discovery={
        "login.v1": {
            "client": next(iter(oauth.CLIENTS)),
            "grant_types": ["authz_code"],
            "authz": "/oauth/authorize",
            "token": "/oauth/token",
            "ports": list(rules.PORTS),
        }
    },
    needs=(ports.LEASES, SIGN_IN),
    start=_start,
    stop=_stop,
)
