"""The runner that a device needs (`worker.engine.runner`), and what notes which requests its steps are about."""
