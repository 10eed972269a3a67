"""Reading a model's structure off the model: what is called with what, and what is added."""
