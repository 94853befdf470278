"""Benchmarks against the peers (dockerd, podman, crun) in the same run: ``make bench``."""
