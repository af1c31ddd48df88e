"""An authorization server of `login.v1` on loopback, strict as RFC 6749 and 7636 want it.

It stands in for the sign-in pages: its page is an immediate redirect, and its
one user is signed in already. Tests of the real pages take its place.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from kit.answering import Answer, Asked, answer

USER = {"id": "user-00000000000000000001", "type": "users", "attributes": {"email": "alice@example.com"}}


@dataclass
class Authorization:
    """Give `met` to a Scripted server. `deny`: the user says no; `broken`: no code is any good."""

    deny: bool = False
    broken: bool = False
    offered: bool = True
    token: str = field(default_factory=lambda: f"tpod_{secrets.token_urlsafe(8)}")
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def met(self, asked: Asked) -> Answer:
        if asked.path == "/.well-known/terraform.json":
            service = {
                "client": "terraform-cli", "grant_types": ["authz_code"], "authz": "/oauth/authorize",
                "token": "/oauth/token", "ports": [10000, 10010],
            }  # fmt: skip
            return answer(200, {"login.v1": service} if self.offered else {}, Content_Type="application/json")
        if asked.path == "/oauth/authorize":
            return self._authorize(asked.query)
        if asked.path == "/oauth/token" and asked.method == "POST":
            return self._exchange(dict(parse_qsl(asked.body.decode())))
        if asked.path == "/api/v2/account/details" and asked.headers.get("authorization") == f"Bearer {self.token}":
            return answer(200, {"data": USER})
        return answer(401, {"errors": [{"status": "401", "title": "unauthorized", "detail": "no"}]})

    def _authorize(self, query: dict[str, str]) -> Answer:
        back = urlsplit(query["redirect_uri"])
        assert (back.scheme, back.hostname, back.path) == ("http", "localhost", "/login")
        assert back.port is not None
        assert 10000 <= back.port <= 10010
        assert (query["response_type"], query["client_id"]) == ("code", "terraform-cli")
        assert query["code_challenge_method"] == "S256"
        assert len(query["state"]) >= 16
        if self.deny:
            sent = {"error": "access_denied", "error_description": "the user said no"}
        else:
            code = secrets.token_urlsafe(8)
            self.codes[code] = query
            sent = {"code": code}
        return answer(302, None, Location=f"{query['redirect_uri']}?{urlencode({**sent, 'state': query['state']})}")

    def _exchange(self, form: dict[str, str]) -> Answer:
        query = self.codes.pop(form.get("code", ""), None)
        verifier = form.get("code_verifier", "")
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        is_good = (
            query is not None
            and not self.broken
            and 43 <= len(verifier) <= 128
            and digest == query["code_challenge"]
            and form["redirect_uri"] == query["redirect_uri"]
            and form["grant_type"] == "authorization_code"
            and form["client_id"] == "terraform-cli"
            and "client_secret" not in form
        )
        if not is_good:
            return answer(400, {"error": "invalid_grant", "error_description": "this code is no good"})
        return answer(200, {"access_token": self.token, "token_type": "bearer"})
