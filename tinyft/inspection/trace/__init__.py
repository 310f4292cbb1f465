"""One step made visible: every op, its kernel, time, memory and gradients."""
