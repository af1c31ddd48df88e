"""The caller's own account, and users as other resources name them."""

from terrapod_server.identity import actions
from terrapod_server.identity.model import User
from terrapod_server.kit.call import Call
from terrapod_server.kit.jsonapi import Access, Attr, Endpoint, Raw, Resource

USER = Resource(
    type="users",
    attributes=(
        Attr("username", str, "the name that other pages show", value=lambda user, _: user.email),
        Attr("email", str, "address, in lower case"),
        Attr("display-name", str, "how the user wants to be called", write=True, maximum=254),
        Attr("avatar-url", str, "always empty", value=lambda *_: ""),
        Attr("is-active", bool, "whether the user may come in"),
        Attr("is-admin", bool, "whether the user is a platform admin"),
        Attr("is-site-admin", bool, "the same, as go-tfe calls it", value=lambda user, _: user.is_admin),
        Attr("is-service-account", bool, "whether this is a program", value=lambda *_: False),
        Attr("v2-only", bool, "always false", value=lambda *_: False),
        Attr("two-factor", dict, "not done here", value=lambda *_: {"enabled": False, "verified": False}),
        Attr(
            "permissions",
            dict,
            "what the user may change about itself",
            value=lambda *_: {
                "can-create-organizations": False,
                "can-change-email": False,
                "can-change-username": False,
                "can-manage-user-tokens": True,
            },
        ),
    ),
    load=lambda keys: actions.users(list(keys)),
)


async def details(call: Call) -> User:
    """Who the token belongs to."""
    return await actions.user(call.principal.id)


async def update(call: Call) -> User:
    """Change what others see of the caller."""
    user = await actions.user(call.principal.id)
    user.display_name = call.attributes.get("display_name", user.display_name)
    await user.save(update_fields=["display_name", "updated_at"])
    return user


RESOURCES = (USER,)
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", "/api/v2/account/details", USER, details, Access.USER),
    Endpoint("PATCH", "/api/v2/account/update", USER, update, Access.USER),
)
