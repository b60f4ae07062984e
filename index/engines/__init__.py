"""Vectors searched: exactly, by FAISS, by Milvus."""
