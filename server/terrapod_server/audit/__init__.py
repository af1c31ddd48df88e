"""The record of who changed what, and of who was refused."""
