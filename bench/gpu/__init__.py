"""Everything a GPU can tell, in stages that each end within minutes: see run.sh."""
