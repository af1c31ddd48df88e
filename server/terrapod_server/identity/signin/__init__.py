"""The ways to sign in: passwords, OIDC and SAML."""
