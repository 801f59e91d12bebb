"""From delivered files to answers: sessions, the encoder, and what is measured with them. Never imports torch."""
