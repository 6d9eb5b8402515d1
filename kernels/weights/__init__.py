"""A file's bytes -> matrices on a device: storage formats, packed layouts and the upload."""
