"""Runs on disk and on machines: records, sweeps, engines, progress, pictures."""
