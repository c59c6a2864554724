"""Recordings as the field files them, and the store of features made from them.

``dcase``, ``table`` and ``store`` need NumPy alone; ``extract`` and ``validate`` read audio.
"""
