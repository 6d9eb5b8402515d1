"""What the outside may see of a worker: log events, metrics, health, Flower. No text of any prompt or answer."""
