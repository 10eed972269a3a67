"""Small models that learn a task when first asked for, and systems built from them."""
