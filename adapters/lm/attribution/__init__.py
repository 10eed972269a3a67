"""Attribution from shared passes: gradients at every reader, relevance propagation."""
