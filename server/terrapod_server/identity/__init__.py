"""Users and their tokens: who a request comes from."""
