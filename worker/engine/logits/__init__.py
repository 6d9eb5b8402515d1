"""What requests ask to have changed in their logits, as arrays that both runners take."""
