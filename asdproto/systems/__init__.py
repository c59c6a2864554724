"""Systems: features, encoder, losses, schedule and score, said in one place each."""
