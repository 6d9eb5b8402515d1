"""The command ``orcd``. What needs a worker's packages is started as a process of its own."""
