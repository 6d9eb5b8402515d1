"""What requests ask to have changed in their logits, as both runners need it."""
