"""What a language model is made of, read from its family's description and proven when wrapped."""
