"""One step asked questions: why the loss changed, and what if it were made otherwise."""
