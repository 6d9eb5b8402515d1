"""What may go wrong, a class a fault; `catalogue.FAULTS` lists them."""
