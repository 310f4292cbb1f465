"""What every step did to every layer group, kept beside a run, and what moved since."""
