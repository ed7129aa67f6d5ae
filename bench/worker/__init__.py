"""What runs inside the environment that is measured: see expertile_bench_worker."""
