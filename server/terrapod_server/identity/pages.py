"""The pages that a person sees: plain HTML that needs no script, in light and dark.

All that is not written here is escaped on its way in. Each form carries the
browser's proof, each field its label, and an error is said beside its field,
in the title and to screen readers.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

from starlette.responses import HTMLResponse, RedirectResponse, Response

from terrapod_server.identity.model import Session, User
from terrapod_server.identity.oauth import Ask
from terrapod_shared import clock

_STYLE = """
:root{color-scheme:light dark;--back:#f4f5f7;--card:#fff;--text:#1b1f24;--soft:#57606a;--line:#868e98;
--strong:#4338ca;--on-strong:#fff;--bad:#b42318;--bad-back:#fef0ee;--ring:#4338ca}
@media(prefers-color-scheme:dark){:root{--back:#101216;--card:#1a1d23;--text:#e8eaed;--soft:#a8b0ba;--line:#757e8a;
--strong:#a5b4fc;--on-strong:#14161a;--bad:#ffb4a8;--bad-back:#3a1512;--ring:#a5b4fc}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:flex;flex-direction:column;align-items:center;padding:6vh 1rem 2rem;
background:var(--back);color:var(--text);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header{font-weight:700;font-size:1.125rem;letter-spacing:.02em;margin-bottom:1rem}
main{width:100%;max-width:27rem;background:var(--card);border:1px solid var(--line);border-radius:.75rem;
padding:1.75rem;overflow-wrap:anywhere}
main.wide{max-width:46rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 1rem}
h2{font-size:1.125rem;margin:2rem 0 .5rem}
p{margin:0 0 1rem}
label{display:block;font-weight:600;margin-bottom:.25rem}
.field{margin-bottom:1.125rem}
.hint{color:var(--soft);font-size:.9rem;margin:.25rem 0 0}
input{width:100%;font:inherit;color:inherit;background:transparent;border:1px solid var(--line);border-radius:.5rem;
padding:.6rem .75rem}
input[aria-invalid=true]{border:2px solid var(--bad)}
button,a.button{display:block;width:100%;font:inherit;font-weight:600;text-align:center;text-decoration:none;
cursor:pointer;border-radius:.5rem;padding:.65rem 1rem;border:1px solid var(--strong);background:var(--strong);
color:var(--on-strong);margin-top:.75rem}
button.plain,a.button{background:transparent;color:var(--strong)}
button.small{width:auto;display:inline-block;margin:0;padding:.25rem .75rem}
a{color:var(--strong)}
:focus-visible{outline:3px solid var(--ring);outline-offset:2px}
.error{color:var(--bad);background:var(--bad-back);border:1px solid var(--bad);border-radius:.5rem;
padding:.75rem 1rem;margin:0 0 1.25rem}
.field .error{background:none;border:0;padding:0;margin:.25rem 0 0}
.or{color:var(--soft);text-align:center;margin:1.25rem 0 .25rem}
dl{margin:0 0 1rem}
dt{color:var(--soft);font-size:.9rem}
dd{margin:0 0 .5rem;font-weight:600}
ul{list-style:none;margin:0;padding:0}
li{border-top:1px solid var(--line);padding:.75rem 0;display:flex;gap:1rem;justify-content:space-between;
align-items:center;flex-wrap:wrap}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


@dataclass(frozen=True)
class Way:
    """A provider on the sign-in page."""

    name: str
    title: str


def page(
    title: str, body: str, status: int = 200, *, forms: str = "", wide: bool = False, wrong: bool = False
) -> HTMLResponse:
    """`wrong` says in the window's title that there is an error. `forms` is the origin besides ours to which a form's answer leads: browsers hold redirects to the same rule."""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{'Error: ' if wrong else ''}{escape(title)} - Terrapod</title><style>{_STYLE}</style></head>"
        f"<body><header>Terrapod</header><main{' class=wide' if wide else ''}><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'{' ' + forms if forms else ''}; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(html, status, headers)


def redirect(url: str) -> Response:
    """With GET, whatever the request was; nothing of this address goes along."""
    return RedirectResponse(url, 303, {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"})


def _form(action: str, csrf: str, inner: str, **hidden: str) -> str:
    fields = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in {"csrf": csrf, **hidden}.items()
    )
    return f'<form method="post" action="{escape(action)}">{fields}{inner}</form>'


def _field(
    name: str, label: str, kind: str, complete: str, *, value: str = "", error: str = "", hint: str = "", more: str = ""
) -> str:
    said = [f"{name}-{part}" for part, text in (("hint", hint), ("error", error)) if text]
    described = f' aria-describedby="{" ".join(said)}"' if said else ""
    wrong = ' aria-invalid="true"' if error else ""
    return (
        f'<div class="field"><label for="{name}">{escape(label)}</label>'
        f'<input id="{name}" name="{name}" type="{kind}" autocomplete="{complete}" value="{escape(value)}" '
        f"required{described}{wrong}{more}>"
        + (f'<p class="hint" id="{name}-hint">{escape(hint)}</p>' if hint else "")
        + (f'<p class="error" id="{name}-error">{escape(error)}</p>' if error else "")
        + "</div>"
    )


def _alert(text: str) -> str:
    return f'<p class="error" role="alert" id="problem">{escape(text)}</p>' if text else ""


def sign_in(
    csrf: str, goes_on: str, ways: Sequence[Way], *, local: bool, email: str = "", error: str = "", status: int = 200
) -> Response:
    """The form of local accounts, and a link for each provider."""
    body = _alert(error)
    if local:
        bad = ' aria-invalid="true" aria-describedby="problem"' if error else ""
        focus = " autofocus"
        body += _form(
            "/sign-in",
            csrf,
            _field("email", "E-mail address", "email", "username", value=email, more=bad + ("" if email else focus))
            + _field("password", "Password", "password", "current-password", more=bad + (focus if email else ""))
            + '<button type="submit">Sign in</button>',
            next=goes_on,
        )
    if ways:
        links = "".join(
            f'<a class="button" href="/api/v2/auth/authorize?{escape(urlencode({"provider": way.name, "next": goes_on}))}">'
            f"Continue with {escape(way.title)}</a>"
            for way in ways
        )
        body += f'<p class="or">or</p>{links}' if local else links
    if not local and not ways:
        body += "<p>No way of signing in is set up on this server.</p>"
    return page("Sign in", body, status, wrong=bool(error))


def consent(csrf: str, ask: Ask, user: User, host: str) -> Response:
    """Asks the person before anything is made."""
    what = (
        "A new API token will be made. The command keeps it on that computer, and with it may do all that you may do."
        if ask.client.gives == "token"
        else "A new session will be begun. With it the command may do all that you may do, until it ends."
    )
    body = (
        f"<p><strong>{escape(ask.client.title)}</strong> asks to use your account. "
        "Allow it only if you have just started it yourself.</p>"
        f"<dl><dt>Server</dt><dd>{escape(host)}</dd><dt>Account</dt><dd>{escape(user.email)}</dd>"
        f"<dt>Program</dt><dd>{escape(ask.client.title)}, on this computer ({escape(ask.origin)})</dd></dl>"
        f"<p>{what}</p>"
        + _form(
            f"/oauth/authorize?{ask.query()}",
            csrf,
            '<button name="answer" value="allow">Allow</button>'
            '<button name="answer" value="deny" class="plain">Do not allow</button>'
            '<button name="answer" value="other" class="plain">Use another account</button>',
        )
    )
    return page("Allow access?", body, forms=ask.origin)


def account(
    csrf: str, user: User, current: Session, live: Sequence[Session], *, error: str = "", done: str = ""
) -> Response:
    """Who is signed in and where, and the password."""
    body = f'<p role="status">{escape(done)}</p>' if done else ""
    body += f"<dl><dt>Signed in as</dt><dd>{escape(user.email)}</dd><dt>By</dt><dd>{escape(current.provider)}</dd></dl>"
    body += _form("/sign-out", csrf, '<button class="plain small">Sign out</button>')
    body += "<h2>Sessions</h2><ul>"
    for each in live:
        what = "this browser" if each.id == current.id else each.user_agent or "unknown program"
        body += (
            f"<li><div>{escape(what)}<p class=hint>from {escape(each.address or 'unknown')}, "
            f"last used {escape(clock.stamp(each.last_used_at)[:16].replace('T', ' '))} UTC, ends in …{escape(each.hint)}</p></div>"
        )
        if each.id != current.id:
            label = f"End the session of {what} from {each.address}"
            body += _form(
                "/account/sessions", csrf, f'<button class="plain small" aria-label="{escape(label)}">End</button>',
                session=each.id,
            )  # fmt: skip
        body += "</li>"
    body += "</ul>"
    if len(live) > 1:
        body += _form(
            "/account/sessions", csrf, '<button class="plain small">End all others</button>', session="others"
        )
    if user.has_password:
        body += "<h2>Change password</h2>" + _form(
            "/account/password",
            csrf,
            _alert(error)
            # for password managers: whose password it is
            + f'<input type="text" hidden readonly autocomplete="username" name="username" value="{escape(user.email)}">'
            + _field(
                "current", "Current password", "password", "current-password",
                more=' aria-describedby="problem" autofocus' if error else "",
            )
            + _field(
                "password", "New password", "password", "new-password",
                hint="At least 12 characters, not easy to guess. A few unrelated words are good.",
                more=' minlength="12" maxlength="256"',
            )
            + _field("again", "New password, again", "password", "new-password")
            + "<button>Change password</button>",
        )  # fmt: skip
    return page("Your account", body, 422 if error else 200, wide=True, wrong=bool(error))


def message(title: str, text: str, status: int = 200, link: tuple[str, str] | None = None) -> Response:
    """A page that only says something; `link` is (address, text)."""
    body = f"<p>{escape(text)}</p>"
    if link:
        body += f'<p><a href="{escape(link[0])}">{escape(link[1])}</a></p>'
    return page(title, body, status)
