"""The work on one phase of a run: plan or apply, from the offer to the delivery of its results."""
