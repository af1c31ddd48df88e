"""Roles, who has them, and the one rule that makes a level of them."""
