"""Named suites: `expertile bench run cpu-ops`, `cpu-limits`, `model`."""
