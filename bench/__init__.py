"""IS IT STILL AS FAST: suites, peers, floors, gates and reports."""
