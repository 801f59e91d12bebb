"""Files -> answers: sessions on each backend, the encoder, and what the machine is. Never torch."""
