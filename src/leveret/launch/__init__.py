"""`leveret launch`: several processes, on one machine or many, train one model."""
