"""The API of declarations: parsing, rendering and documents made of them."""
