"""The values and the contract: graph, mask, scores, circuit, task, batch, model, result."""
