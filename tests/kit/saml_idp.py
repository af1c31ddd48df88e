"""pysaml2 as an identity provider, in a process of its own: `saml_idp.py PORT FOLDER`.

FOLDER holds `key.pem`, `cert.pem`, `sp.xml` (the service provider's metadata)
and `person.json`: who signs in, and further arguments of the response. Both
can change while it runs, but for the keys.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from saml2 import BINDING_HTTP_POST, BINDING_HTTP_REDIRECT
from saml2.authn_context import PASSWORDPROTECTEDTRANSPORT
from saml2.config import IdPConfig
from saml2.saml import NameID
from saml2.server import Server
from saml2.xmldsig import DIGEST_SHA256, SIG_RSA_SHA256

PORT, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
BASE = f"http://127.0.0.1:{PORT}"


def idp() -> Any:
    return Server(
        config=IdPConfig().load(
            {
                "entityid": f"{BASE}/idp",
                "key_file": str(FOLDER / "key.pem"),
                "cert_file": str(FOLDER / "cert.pem"),
                "metadata": {"local": [str(FOLDER / "sp.xml")]},
                "service": {
                    "idp": {
                        "endpoints": {"single_sign_on_service": [(f"{BASE}/sso", BINDING_HTTP_REDIRECT)]},
                        "policy": {"default": {"lifetime": {"minutes": 5}, "attribute_restrictions": None}},
                    }
                },
                "allow_unknown_attributes": True,
            }
        )
    )


SERVER = idp()


class Handler(BaseHTTPRequestHandler):
    """`/sso` answers at once for the person of the file; a person's browser then sends the form."""

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        page = self.sso(query) if self.path.startswith("/sso") else "ready"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(page.encode())

    def sso(self, query: dict[str, str]) -> str:
        server, person = SERVER, json.loads((FOLDER / "person.json").read_text())
        request = server.parse_authn_request(query["SAMLRequest"], BINDING_HTTP_REDIRECT)
        answer = server.response_args(request.message, [BINDING_HTTP_POST])
        answer.pop("name_id_policy", None)
        response = server.create_authn_response(
            person["attributes"],
            name_id=NameID(format=person["format"], text=person["name_id"]),
            authn={"class_ref": PASSWORDPROTECTEDTRANSPORT},
            sign_alg=SIG_RSA_SHA256,
            digest_alg=DIGEST_SHA256,
            **{"sign_assertion": True, "sign_response": False, **answer, **person["more"]},
        )
        form = server.apply_binding(
            BINDING_HTTP_POST, str(response), answer["destination"], query["RelayState"], response=True
        )
        return str(form["data"])

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
