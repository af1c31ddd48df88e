"""What is about the server itself: is it there, which services and which API it has."""
