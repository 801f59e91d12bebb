"""Embeddings, distillation and contrastive training."""
