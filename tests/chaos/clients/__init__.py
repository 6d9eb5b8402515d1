"""Clients of every kind, in threads and processes of their own, which compare what they see with what is right."""
