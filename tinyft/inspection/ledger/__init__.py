"""The ledger: every step's effect on every layer, kept beside a run; and what moved since."""
