"""What a run of a language model takes: memory and seconds, estimated before it starts."""
