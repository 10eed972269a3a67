"""What several tests share: tiny random models and the slow oracle they are compared with."""
