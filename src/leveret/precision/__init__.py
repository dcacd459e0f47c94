"""Number formats of stored weights, and the Linears that multiply with them; put on a model from outside."""
