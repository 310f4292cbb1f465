"""Learning from the source: exercises to solve, and a tour through one training step."""
