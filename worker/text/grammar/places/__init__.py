"""Where answers of a grammar may be in their documents, and what is known of that."""
