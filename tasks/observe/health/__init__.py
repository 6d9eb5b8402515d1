"""HTTP for probes and Prometheus, answered by a process of its own, which a busy worker does not keep waiting."""
