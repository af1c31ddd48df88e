"""What listeners call: signed requests, waiting for work, and the delivery of its results."""
