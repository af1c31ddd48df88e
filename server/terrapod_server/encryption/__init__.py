"""Which keys encrypt at rest, as the database knows them."""
