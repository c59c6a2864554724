"""Embeddings to scores, scores to decisions and metrics: NumPy, SciPy and scikit-learn."""
