"""What the server, the listener and the command line must agree on; imports none of them."""
