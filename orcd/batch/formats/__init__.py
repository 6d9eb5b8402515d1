"""How prompt files are written: a module a format, each of which finds the requests in a file."""
