"""Retrieval of scenes and objects across modalities (CrossOver): embeddings, metrics, tables, galleries."""
