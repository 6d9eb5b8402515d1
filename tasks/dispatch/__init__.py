"""Runs claimed jobs on one engine process: takes them on, feeds the engine, writes token logs, keeps leases."""
